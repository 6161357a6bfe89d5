// What a model knows: its corpus and words, and how far a sentence is from them.
import { post } from "./api.js";
import { addressOf } from "./address.js";

const WORDS = 120;  // shown
const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");

export function showKnowledge(model) {
  const known = model.training;
  byId("knowledge-lead").textContent = known
    ? "It was trained on these prompts alone. It takes any sentence, and does best near them."
    : "It does not say what it was trained on: export it again from its run.";
  const facts = {
    Model: model.id,
    Generator: model.generator,
    ...(known ? { Corpus: known.corpus, "Training prompts": number(known.prompts), "Different words": number(known.known_words) } : {}),
    "Longest sentence": `${model.max_prompt_tokens} tokens`,
    Checkpoint: model.digest,
  };
  byId("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== undefined).map(([name, value]) => {
    const pair = document.createElement("div"), term = document.createElement("dt"), fact = document.createElement("dd");
    [term.textContent, fact.textContent] = [name, value];
    pair.append(term, fact);
    return pair;
  }));
  const words = known?.words ?? [];
  byId("words-title").hidden = words.length === 0;
  byId("words").replaceChildren(...words.slice(0, WORDS).map((word) => {
    const item = document.createElement("li");
    item.textContent = word;
    item.dir = "auto";
    return item;
  }));
  byId("words-more").textContent = words.length > WORDS ? `and ${number(known.known_words - WORDS)} more` : "";
}

// Say how far sentences are from what the model was trained on.
export async function showFamiliarity(prompts, model, signal) {
  const key = JSON.stringify([prompts, model.digest]);
  if (byId("familiarity").dataset.key === key) return;  // a slider asks for the same ones again
  const found = [];
  for (const prompt of prompts) found.push(await post("v1/familiarity", { prompt, model: model.id }, { signal }));
  if (signal.aborted) return;
  const said = found.flatMap((one) => one.sentences), parts = [];
  if (said.length) {
    const warning = document.createElement("div");
    warning.className = "warn";
    warning.append(...[...new Set(said)].map((sentence) => paragraph(sentence)));
    parts.push(warning);
  }
  const near = found.filter((one) => !one.trained).flatMap((one) => one.nearest ?? []);
  if (near.length && said.length) parts.push(paragraph("Nearest training prompts", "note"), links(near, model));
  byId("familiarity").replaceChildren(...parts);
  byId("familiarity").dataset.key = key;
}

function paragraph(text, kind = "") {
  const element = document.createElement("p");
  [element.textContent, element.className, element.dir] = [text, kind, "auto"];
  return element;
}

function links(near, model) {
  const list = document.createElement("ul");
  for (const prompt of new Set(near.map((one) => one.prompt))) {
    const item = document.createElement("li"), link = document.createElement("a");
    [link.textContent, link.dir] = [prompt, "auto"];
    link.href = addressOf({ prompt, model: model.isFirst ? "" : model.id });
    item.append(link);
    list.append(item);
  }
  return list;
}
