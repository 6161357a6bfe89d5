"""Style and script of the report page. Both are constants: no data is ever formatted into them."""

STYLE = """
:root {
  --page: #f6f5f2; --paper: #ffffff; --ink: #1d1c1a; --soft: #6f6b64; --line: #e3e0d9;
  --accent: #2f6f62; --band: #2f6f6233; --tick: #b3832f; --wrong: #b0452f; --stage: #808080;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #151514; --paper: #1e1d1c; --ink: #ecebe7; --soft: #9c978e; --line: #33312e;
    --accent: #7cc4b3; --band: #7cc4b340; --tick: #d9ab5c; --wrong: #e58a74; --stage: #808080;
  }
}
* { box-sizing: border-box; }
html { background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1280px; padding: 56px 32px 96px;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
h1, h2, h3, p, dl, dd { margin: 0; }
h1 { font-size: 34px; line-height: 1.15; font-weight: 620; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 19px; font-weight: 620; letter-spacing: -0.01em; }
header { margin-bottom: 36px; }
section { margin-bottom: 56px; }
.overline { color: var(--accent); font-size: 13px; font-weight: 600; margin-bottom: 6px; }
.lead { color: var(--soft); margin-top: 10px; }
.note, small { color: var(--soft); }

.tiles { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(186px, 1fr)); }
.tile { padding: 18px 20px 16px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; }
.tile h3 { font-size: 13px; font-weight: 500; color: var(--soft); }
.value { font-size: 34px; line-height: 1.25; font-weight: 600; letter-spacing: -0.02em; }
.range, .tile .note { font-size: 12.5px; line-height: 1.4; color: var(--soft); }

.scale { position: relative; height: 3px; border-radius: 2px; background: var(--line); }
.tile .scale { margin: 14px 0 12px; }
.scale i { position: absolute; display: block; }
.band { top: -2px; height: 7px; min-width: 3px; border-radius: 4px; background: var(--band); }
.dot { top: -3px; width: 9px; height: 9px; margin-left: -4.5px; border-radius: 50%;
  background: var(--accent); }
.tick { top: -5px; width: 2px; height: 13px; margin-left: -1px; border-radius: 1px; background: var(--tick); }

.scroll { overflow-x: auto; margin-top: 16px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 9px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child { padding-left: 20px; }
th:last-child, td:last-child { padding-right: 20px; }
th:first-child { text-align: left; font-weight: 500; max-width: 22em; overflow: hidden;
  text-overflow: ellipsis; }
thead th { border-top: 0; font-size: 12.5px; line-height: 1.3; font-weight: 500; color: var(--soft);
  white-space: normal; vertical-align: bottom; }
td small { display: block; font-size: 11.5px; line-height: 1.3; }
tr.all th, tr.all td { font-weight: 620; }
tr.all small { font-weight: 400; }
tr.split + tr.kind > *, tr.all + tr > * { border-top-width: 2px; }

.bar { display: flex; flex-wrap: wrap; gap: 12px 20px; align-items: center; margin-bottom: 12px; }
.bar ~ .note { font-size: 13px; }
.gallery { margin-top: 16px; }
.controls { display: flex; flex-wrap: wrap; gap: 10px 14px; align-items: center; margin-left: auto;
  font-size: 13.5px; color: var(--soft); }
.controls input, .controls select, .controls button {
  font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 7px; padding: 6px 10px; min-height: 34px;
}
.controls label { display: flex; gap: 7px; align-items: center; }
.controls button { cursor: pointer; }
.controls output { min-width: 7.5em; text-align: right; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.gallery { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(228px, 1fr)); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  content-visibility: auto; contain-intrinsic-size: auto 228px auto 460px; }
.card[hidden] { display: none; }
.card video { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; object-position: left;
  background: var(--stage); }
.strip { display: block; background: var(--stage); }
.strip img { display: block; width: 100%; height: auto; }
.text { padding: 14px 16px 16px; }
.card h3 { font-size: 15px; line-height: 1.35; font-weight: 600; overflow-wrap: anywhere; }
.tags { display: flex; gap: 10px; font-size: 12.5px; color: var(--soft); margin: 2px 0 10px; }
.card dl { display: grid; gap: 5px; font-size: 13px; }
.card dl > div { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 10px; }
.card dt { color: var(--soft); }
.card dd { text-align: right; }
.card dl > div:has(.scale) dd { display: contents; }
.card .scale { flex: 0 0 100%; margin: 6px 0 7px; }
.card .band { top: 0; height: 3px; background: var(--accent); opacity: 0.45; }
.card .dot { top: -2px; width: 7px; height: 7px; margin-left: -3.5px; }
.card .tick { top: -3px; height: 9px; }
.sides b { display: inline-block; margin-left: 5px; padding: 0 6px; border-radius: 4px; font-weight: 500;
  font-size: 11.5px; border: 1px solid var(--line); color: var(--soft); }
.sides dd { text-align: left; flex: 0 0 100%; margin-top: 3px; }
.sides b:first-child { margin-left: 0; }
.sides .on { color: var(--paper); background: var(--accent); border-color: var(--accent); }
.sides .wrong { background: var(--wrong); border-color: var(--wrong); }
.empty { color: var(--soft); padding: 40px 0; text-align: center; }

details { border-top: 1px solid var(--line); padding-top: 18px; }
summary { cursor: pointer; font-weight: 600; }
details dl { display: grid; gap: 6px 32px; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr));
  margin-top: 16px; font-size: 13.5px; }
details dl > div { display: flex; justify-content: space-between; gap: 16px; padding-bottom: 5px;
  border-bottom: 1px solid var(--line); }
details dt { color: var(--soft); }
details dd { text-align: right; overflow-wrap: anywhere; }
@media (max-width: 640px) { body { padding: 32px 18px 64px; } .controls { margin-left: 0; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); } .tile { padding: 14px 16px 12px; } }
"""

SCRIPT = """
"use strict";
const get = (id) => document.getElementById(id);
const gallery = get("gallery"), cards = [...gallery.children];
const text = new Map(cards.map((card) => [card, card.querySelector("h3").textContent.toLowerCase()]));
const visible = new Set();
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let lowFirst = true;

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
  const words = get("filter").value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const card of cards) {
    const matches = words.every((word) => text.get(card).includes(word)) &&
      ["split", "kind"].every((name) => !get(name)?.value || get(name).value === card.dataset[name]);
    card.hidden = !matches;
    shown += matches;
  }
  get("count").textContent = shown + " of " + cards.length;
  get("empty").hidden = shown > 0;
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
  visible.forEach(play);  // moving a video in the document stops it
  get("direction").textContent = lowFirst ? "Low first" : "High first";
}

get("controls").addEventListener("submit", (event) => event.preventDefault());
get("filter").addEventListener("input", update);
for (const name of ["split", "kind"]) get(name)?.addEventListener("change", update);
get("sort").addEventListener("change", sort);
get("direction").addEventListener("click", () => { lowFirst = !lowFirst; sort(); });
update();
"""
