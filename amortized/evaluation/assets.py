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
  margin: 0 auto; max-width: 1280px; padding: 40px 32px 96px;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
h1, h2, h3, p, dl, dd { margin: 0; }
h1 { font-size: 34px; line-height: 1.15; font-weight: 620; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 19px; font-weight: 620; letter-spacing: -0.01em; }
header { margin-bottom: 28px; }
section { margin-bottom: 56px; }
.overline { color: var(--accent); font-size: 13px; font-weight: 600; margin-bottom: 6px; }
.lead { color: var(--soft); margin-top: 8px; }
.lead b { color: var(--ink); font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 12px; font-size: 13.5px; }
nav a { padding: 4px 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.note, small { color: var(--soft); }

.tiles { margin-top: 16px; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(186px, 1fr)); }
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

.scroll { overflow-x: auto; margin-top: 10px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 9px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child { padding-left: 20px; }
th:last-child, td:last-child { padding-right: 20px; }
th:first-child { text-align: left; font-weight: 500; max-width: 22em; overflow: hidden;
  text-overflow: ellipsis; }
thead th { border-top: 0; font-size: 12.5px; line-height: 1.3; font-weight: 500; color: var(--soft);
  white-space: normal; vertical-align: bottom; }
.tiles + .note { margin-top: 22px; font-size: 13px; }
td small { display: block; font-size: 11.5px; line-height: 1.3; }
tr.all th, tr.all td { font-weight: 620; }
tr.all small { font-weight: 400; }
tr.split + tr.kind > *, tr.all + tr > * { border-top-width: 2px; }

.bar { display: flex; flex-wrap: wrap; gap: 12px 20px; align-items: center; margin-bottom: 12px; }
.more + .note { font-size: 13px; }
.controls { display: flex; flex-wrap: wrap; gap: 10px 14px; align-items: center; margin-left: auto;
  font-size: 13.5px; color: var(--soft); }
.controls input, .controls select, button {
  font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 7px; padding: 6px 10px; min-height: 34px;
}
.controls input { flex: 1 1 160px; min-width: 0; }
.controls label { display: flex; gap: 7px; align-items: center; }
button { cursor: pointer; }
.controls output { min-width: 7.5em; text-align: right; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.gallery { display: grid; gap: 16px; margin-top: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  display: flex; flex-direction: column; justify-content: space-between; }
.card[hidden] { display: none; }
.main { display: flex; flex: 1; }
/* Pictures keep their own size or shrink: enlarged ones would be blurred. */
.stage { flex: 0 0 min(46%, var(--size)); display: grid; place-items: center; background: var(--stage); }
.stage > * { display: block; max-width: 100%; height: auto; aspect-ratio: 1; object-fit: cover;
  object-position: left; }
.text { flex: 1; min-width: 0; padding: 12px 16px 12px; }
.card h3 { font-size: 15px; line-height: 1.35; font-weight: 600; overflow-wrap: anywhere;
  display: -webkit-box;
  -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden; }
.tags { display: flex; flex-wrap: wrap; gap: 0 10px; font-size: 12.5px; color: var(--soft); margin: 1px 0 7px;
  overflow-wrap: anywhere; }
.card dl { display: grid; gap: 3px; font-size: 12.5px; line-height: 1.4; }
.card dl > div { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 10px; }
.card dt { color: var(--soft); }
.card dd { text-align: right; }
.card dl > div:has(.scale) dd { display: contents; }
.card .scale { flex: 0 0 100%; margin: 5px 0 6px; }
.card .band { top: 0; height: 3px; background: var(--accent); opacity: 0.45; }
.card .dot { top: -2px; width: 7px; height: 7px; margin-left: -3.5px; }
.card .tick { top: -3px; height: 9px; }
.strips { border-top: 1px solid var(--line); background: var(--stage); }
.strip { display: flex; align-items: stretch; text-decoration: none; }
.strip span { flex: 0 0 44px; display: grid; place-items: center; font-size: 11.5px; color: var(--soft);
  background: var(--paper); border-right: 1px solid var(--line); }
.strip + .strip span { border-top: 1px solid var(--line); }
.strip img { display: block; min-width: 0; max-width: 100%; height: auto; object-fit: contain;
  margin: 0 auto; }
.sides b { display: inline-block; margin: 2px 5px 0 0; padding: 0 6px; border-radius: 4px; font-weight: 500;
  font-size: 11.5px; border: 1px solid var(--line); color: var(--soft); }
.sides dd { text-align: left; flex: 0 0 100%; }
.sides .on { color: var(--paper); background: var(--accent); border-color: var(--accent); }
.sides .wrong { background: var(--wrong); border-color: var(--wrong); }
.more { text-align: center; margin-top: 18px; }

.curves { display: grid; gap: 16px; margin-top: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
figure { margin: 0; padding: 16px 20px 12px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; }
figcaption { display: flex; justify-content: space-between; font-size: 13px; color: var(--soft); }
figcaption b { color: var(--ink); font-weight: 600; }
.plot { position: relative; margin-top: 10px; padding-right: 52px; border-bottom: 1px solid var(--line); }
.plot svg { display: block; width: 100%; height: 150px; }
.plot polyline { fill: none; stroke: var(--accent); stroke-width: 1.8; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; }
.plot span { position: absolute; right: 0; font-size: 11px; line-height: 1; color: var(--soft);
}
.plot .high { top: 0; } .plot .low { bottom: 0; }
.steps { display: flex; justify-content: space-between; font-size: 11px; color: var(--soft);
  margin: 5px 52px 0 0; }
.downloads { list-style: none; margin: 14px 0 0; padding: 0; display: grid; gap: 8px 32px; color: var(--soft);
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); font-size: 13.5px; }
a { color: var(--accent); }
.empty { color: var(--soft); padding: 40px 0; text-align: center; }

details { border-top: 1px solid var(--line); padding-top: 18px; }
summary { cursor: pointer; font-weight: 600; }
details dl, section > dl { display: grid; gap: 6px 32px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr));
  margin-top: 16px; font-size: 13.5px; }
details dl > div, section > dl > div { display: flex; justify-content: space-between; gap: 16px;
  padding-bottom: 5px;
  border-bottom: 1px solid var(--line); }
details dt, section > dl dt { color: var(--soft); flex: none; }
details dd, section > dl dd { text-align: right; overflow-wrap: anywhere; }
@media (max-width: 640px) { body { padding: 24px 16px 64px; } h1 { font-size: 28px; }
  .controls, nav { flex-wrap: nowrap; width: 100%; margin-left: 0; overflow-x: auto; white-space: nowrap; }
  .controls { padding: 3px; } .controls input { flex: 0 0 150px; } .controls output { min-width: 0; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); } .tile { padding: 14px 16px 12px; } }
"""

SCRIPT = """
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
  const words = (get("filter")?.value ?? "").toLowerCase().split(/\\s+/).filter(Boolean);
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
"""
