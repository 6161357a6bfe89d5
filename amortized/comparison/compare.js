"use strict";
const get = (id) => document.getElementById(id);
const table = get("prompts");
const prompts = [...table.querySelectorAll(".prompt")].map((element) => ({
  element,
  index: Number(element.dataset.index),
  presence: element.dataset.presence,
  text: element.querySelector("h3").textContent.toLowerCase(),
  scores: element.dataset.scores.split("|").map((run) =>
    run.split(",").map((score) => (score === "" ? null : Number(score)))),
}));
const headers = [...table.querySelectorAll("[aria-sort]")];
let sorted = headers[0], ascending = true;

// The value that a prompt is sorted by: a run's score, or its difference to another's; null if one is missing.
function valueOf(prompt, metric) {
  const [run, minus] = get("by").value.split(" ").map(Number);
  const score = prompt.scores[run][metric];
  if (minus === undefined) return score ?? null;
  const other = prompt.scores[minus][metric];
  return score == null || other == null ? null : score - other;
}

function sort() {
  const metric = sorted.querySelector("button").dataset.metric;
  const sign = ascending ? 1 : -1;
  const keys = new Map(prompts.map((prompt) => [prompt, metric === "" ? prompt.index : valueOf(prompt, Number(metric))]));
  // Prompts without a value come last in both directions; ties keep the order of the corpus.
  const order = [...prompts].sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
    return sign * (x - y) || a.index - b.index;
  });
  table.append(...order.map((prompt) => prompt.element));
  for (const header of headers)
    header.setAttribute("aria-sort", header !== sorted ? "none" : ascending ? "ascending" : "descending");
}

function filter() {
  const words = get("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const presence = get("presence")?.value ?? "";
  let found = 0;
  for (const prompt of prompts) {
    const matches = (presence === "" || prompt.presence === presence) &&
      words.every((word) => prompt.text.includes(word));
    prompt.element.hidden = !matches;
    found += matches;
  }
  get("count").textContent = found + " of " + prompts.length;
  get("empty").hidden = found > 0;
}

for (const header of headers) {
  header.querySelector("button").addEventListener("click", () => {
    ascending = header === sorted ? !ascending : true;
    sorted = header;
    sort();
  });
}
get("controls").addEventListener("submit", (event) => event.preventDefault());
get("filter").addEventListener("input", filter);
get("presence")?.addEventListener("change", filter);
get("by").addEventListener("change", sort);
filter();
