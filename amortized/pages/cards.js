"use strict";
// Cards: filtered by the words of their heading and by choices, sorted by a number, shown some at a time.
const get = (id) => document.getElementById(id);
const on = (id, event, action) => get(id)?.addEventListener(event, action);
const gallery = get("gallery"), cards = [...gallery.children], more = get("more");
const text = new Map(cards.map((card) => [card, card.querySelector("h3").textContent.toLowerCase()]));
const choices = [...document.querySelectorAll("select[data-choice]")];
const STEP = 240;
let limit = Number(more.dataset.first), ascending = true;

// ---- moving pictures: loaded while they are in the window, since browsers refuse to load many videos at once
const visible = new Set();
let still = matchMedia("(prefers-reduced-motion: reduce)").matches;

function show(video) {
  if (video.dataset.poster) video.poster = video.dataset.poster;
  if (!video.hasAttribute("src")) { video.autoplay = !still; video.controls = still; video.src = video.dataset.src; }
  if (!still) video.play().catch(() => {});
}
function unload(video) { video.removeAttribute("src"); video.load(); }
// An animated picture cannot be paused: a drawing of its first frame takes its place.
const frozen = new Map();
function freeze(image) {
  if (!image.naturalWidth || frozen.has(image)) return;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", image.alt);
  frozen.set(image, canvas);
  image.replaceWith(canvas);
}
const moves = (target) => target.tagName === "VIDEO" ? show(target) : still && freeze(target);
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { visible.add(target); moves(target); }
    else { visible.delete(target); if (target.tagName === "VIDEO") unload(target); }
  }
}, { rootMargin: "120px" });
for (const moving of document.querySelectorAll("video[data-src], img[data-animated]")) {
  watcher.observe(moving);
  if (moving.tagName === "IMG") moving.addEventListener("load", () => still && freeze(moving));
}

function pause() {
  still = !still;
  if (!still) { for (const [image, canvas] of frozen) canvas.replaceWith(image); frozen.clear(); }
  for (const moving of visible) { if (still && moving.tagName === "VIDEO") moving.pause(); else moves(moving); }
  get("pause").textContent = still ? "Play" : "Pause";
  get("pause").setAttribute("aria-pressed", String(still));
}

// ---- which cards, and in which order
function update() {
  const words = (get("filter")?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const card of gallery.children) {
    const matches = words.every((word) => text.get(card).includes(word)) &&
      choices.every((choice) => !choice.value || choice.value === card.dataset[choice.id]);
    found += matches;
    card.hidden = !matches || found > limit;
  }
  if (get("count")) get("count").textContent = found + " of " + cards.length;
  get("empty").hidden = found > 0;
  more.hidden = found <= limit;
  more.textContent = found - limit > STEP ? "Show " + STEP + " more" : "Show all " + found;
}

function sort() {
  // Cards without the number come last in both directions; ties keep the order of the page.
  const name = "data-" + (get("sort")?.value ?? "index").replaceAll("_", "-");
  const key = (card) => card.hasAttribute(name) ? Number(card.getAttribute(name)) : null;
  const sorted = [...cards].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (ascending ? x - y : y - x) || a.dataset.index - b.dataset.index;
  });
  gallery.append(...sorted);
  update();
  visible.forEach(moves);  // moving a video in the document stops it
  get("direction").textContent = get("direction").dataset[ascending ? "up" : "down"];
}

function showMore() {
  const first = [...gallery.children].filter((card) => !card.hidden).length;
  limit += STEP;
  update();
  const next = [...gallery.children].filter((card) => !card.hidden)[first];
  if (more.hidden) next?.querySelector("a, button")?.focus();  // the focus would be lost with the button
}

on("controls", "submit", (event) => event.preventDefault());
on("filter", "input", update);
for (const choice of choices) choice.addEventListener("change", update);
on("sort", "change", sort);
on("direction", "click", () => { ascending = !ascending; sort(); });
on("pause", "click", pause);
on("more", "click", showMore);
if (still && get("pause")) get("pause").textContent = "Play";
update();
