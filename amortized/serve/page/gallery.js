// The training prompts of a model: searched, a page at a time, with a picture of each that is in the window.
import { file, get, make } from "./api.js";
import { addressOf } from "./address.js";
import { busy } from "./stage.js";

const PAGE = 24, AT_ONCE = 2;
const list = document.getElementById("prompts"), count = document.getElementById("count");
const more = document.getElementById("more"), search = document.getElementById("search");
let model = null, abort = new AbortController(), waiting = [], working = 0;

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { watcher.unobserve(target); waiting.push(target); work(); }
  }
}, { rootMargin: "160px" });

export async function showGallery(chosen) {
  model = chosen;
  await fill();
}

async function fill() {
  abort.abort();
  abort = new AbortController();
  waiting = [];
  list.replaceChildren();
  await add(0);
}

async function add(offset) {
  const { signal } = abort;
  const query = new URLSearchParams({ search: search.value.trim(), offset, limit: PAGE });
  const { total, prompts } = await get(`v1/models/${encodeURIComponent(model.id)}/prompts?${query}`, { signal });
  if (signal.aborted) return;
  const first = list.children.length;
  list.append(...prompts.map(card));
  more.hidden = list.children.length >= total;
  count.textContent = sentence(total);
  markCurrent();
  if (offset) list.children[first]?.querySelector("a").focus();
}

function sentence(total) {
  const known = model.training;
  if (!known) return "The model does not say which prompts it was trained on.";
  const all = `${total.toLocaleString("en")} of ${known.prompts.toLocaleString("en")} training prompts`;
  return known.listed_prompts < known.prompts ? `${all}; ${known.listed_prompts.toLocaleString("en")} are listed, evenly spaced` : all;
}

function card(prompt) {
  const item = document.createElement("li"), link = document.createElement("a");
  const thumb = document.createElement("span"), words = document.createElement("span");
  link.href = addressOf({ prompt, model: model.isFirst ? "" : model.id });
  link.dataset.prompt = prompt;
  [thumb.className, words.className] = ["thumb", "words-of"];
  words.textContent = prompt;
  words.dir = "auto";
  link.append(thumb, words);
  item.append(link);
  watcher.observe(link);
  return item;
}

// Mark the prompt that is shown.
export function markCurrent(prompt = list.dataset.current) {
  list.dataset.current = prompt ?? "";
  for (const link of list.querySelectorAll("a")) {
    if (link.dataset.prompt === prompt) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

// Make the pictures, a few at a time, and none while somebody waits for an object.
async function work() {
  if (working >= AT_ONCE || !waiting.length) return;
  working += 1;
  const link = waiting.shift(), { signal } = abort;
  try {
    while (busy) await new Promise((resolve) => setTimeout(resolve, 100));
    const wish = { prompt: link.dataset.prompt, model: model.id, views: 1, size: 96, wait: 30 };
    const picture = document.createElement("img");
    picture.src = URL.createObjectURL(await file(await make(wish, { signal }), "preview.png", signal));
    picture.alt = "";
    picture.onload = () => URL.revokeObjectURL(picture.src);
    link.querySelector(".thumb").append(picture);
  } catch { /* a card without a picture still works */ }
  working -= 1;
  work();
}

let timer = 0;
search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => fill().catch(() => {}), 200); });
document.getElementById("search-form").addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => add(list.children.length).catch(() => {}));
