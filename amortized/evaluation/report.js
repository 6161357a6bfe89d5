"use strict";
const get = (id) => document.getElementById(id);
const on = (id, event, action) => get(id)?.addEventListener(event, action);
const gallery = get("gallery"), cards = [...gallery.children], more = get("more");
const text = new Map(cards.map((card) => [card, card.querySelector("h3").textContent.toLowerCase()]));
const visible = new Set();
let still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let lowFirst = true, limit = Number(more.dataset.first);

const play = (video) => { if (!still) video.play().catch(() => {}); };
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { visible.add(target); play(target); }
    else { visible.delete(target); target.pause(); }
  }
}, { rootMargin: "120px" });
for (const video of document.querySelectorAll("video")) {
  if (still) { video.autoplay = false; video.controls = true; }
  watcher.observe(video);
}

function update() {
  const words = (get("filter")?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const card of gallery.children) {
    const matches = words.every((word) => text.get(card).includes(word)) &&
      ["split", "kind"].every((name) => !get(name)?.value || get(name).value === card.dataset[name]);
    found += matches;
    card.hidden = !matches || found > limit;
  }
  if (get("count")) get("count").textContent = found + " of " + cards.length;
  get("empty").hidden = found > 0;
  more.hidden = found <= limit;
  more.textContent = "Show all " + found;
}

function sort() {
  // Cards without the score come last in both directions; ties keep the order of the corpus.
  const name = "data-" + get("sort").value.replaceAll("_", "-");
  const key = (card) => card.hasAttribute(name) ? Number(card.getAttribute(name)) : null;
  const sorted = [...cards].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (lowFirst ? x - y : y - x) || a.dataset.index - b.dataset.index;
  });
  gallery.append(...sorted);
  update();
  visible.forEach(play);  // moving a video in the document stops it
  get("direction").textContent = lowFirst ? "Low first" : "High first";
}

function pause() {
  still = !still;
  for (const video of visible) { if (still) video.pause(); else play(video); }
  get("pause").textContent = still ? "Play" : "Pause";
  get("pause").setAttribute("aria-pressed", String(still));
}

on("controls", "submit", (event) => event.preventDefault());
on("filter", "input", update);
for (const name of ["split", "kind"]) on(name, "change", update);
on("sort", "change", sort);
on("direction", "click", () => { lowFirst = !lowFirst; sort(); });
on("pause", "click", pause);
on("more", "click", () => { limit = Infinity; update(); });
if (still && get("pause")) get("pause").textContent = "Play";
update();
