// The page: what is asked for, in the form and in the address, and what shows it.
import { addressOf, shownBy } from "./address.js";
import { get } from "./api.js";
import { offerFiles, prepareFiles } from "./files.js";
import { markCurrent, showGallery } from "./gallery.js";
import { showFamiliarity, showKnowledge } from "./knowledge.js";
import { Stage } from "./stage.js";

const byId = (id) => document.getElementById(id);
const form = byId("composer"), stages = byId("stages"), SECTIONS = ["#gallery", "#knowledge"];
let models = [], current = null, shown = [new Stage()], timer = 0, abort = new AbortController();
stages.append(shown[0].element);

// Say what happens. `progress` in percent; null: it failed. `quietly`: only to the eye.
function say(sentence, progress, quietly = false) {
  const status = byId("status"), bar = byId("progress");
  const idle = progress === null || progress >= 100 || progress === 0;
  bar.toggleAttribute("data-idle", idle);
  bar.value = progress ?? 0;
  status.setAttribute("aria-live", quietly ? "off" : "polite");
  status.dataset.kind = progress === null ? "problem" : "";
  if (status.textContent !== sentence) status.textContent = sentence;
}

function sayProblem(error) {
  if (error.name !== "AbortError") say(error.message, null);
}

const mode = () => new FormData(form).get("mode");
const modelOf = (name) => models.find((model) => model.id === name) ?? models[0];

// ---- the form
function wishOf() {
  const wish = { prompt: byId("prompt").value.trim(), model: byId("model").value === models[0].id ? "" : byId("model").value };
  if (current.takes_seed) wish.seed = Math.max(0, Math.floor(Number(byId("seed").value)) || 0);
  if (mode() === "between") Object.assign(wish, { toward: byId("toward").value.trim(), position: Number(byId("position").value) });
  if (mode() === "compare") wish.other = byId("other").value;
  return wish;
}

function fillForm(wish) {
  byId("prompt").value = wish.prompt;
  byId("seed").value = wish.seed;
  byId("model").value = modelOf(wish.model).id;
  byId("toward").value = wish.toward;
  byId("position").value = wish.position;
  if (wish.other) byId("other").value = modelOf(wish.other).id;
  form.elements.mode.value = wish.toward ? "between" : wish.other ? "compare" : "one";
  arrange();
}

// Show the fields of the mode.
function arrange() {
  const chosen = mode();
  byId("between").hidden = chosen !== "between";
  byId("toward").required = chosen === "between";
  byId("prompt-caption").textContent = chosen === "between" ? "First sentence" : "Sentence";
  byId("other-choice").hidden = chosen !== "compare";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const address = addressOf(wishOf());
  if (address === location.hash) makeShown().catch(sayProblem);
  else location.hash = address;  // and the event of that makes it
});
byId("modes").addEventListener("change", () => {
  arrange();
  if (mode() === "between" && !byId("toward").value) byId("toward").focus();
  else if (byId("prompt").value) form.requestSubmit();
});
byId("model").addEventListener("change", () => { if (byId("prompt").value) form.requestSubmit(); else choose(byId("model").value).catch(sayProblem); });
byId("other").addEventListener("change", () => { if (byId("prompt").value) form.requestSubmit(); });
byId("another").addEventListener("click", () => { byId("seed").value = Number(byId("seed").value) + 1; form.requestSubmit(); });
byId("position").addEventListener("input", () => {
  clearTimeout(timer);
  byId("position").setAttribute("aria-valuetext", `${byId("position").value}% of the way`);
  timer = setTimeout(() => {
    if (!form.reportValidity()) return;
    history.replaceState(null, "", addressOf(wishOf()));  // a slider should not fill the history
    makeShown().catch(sayProblem);
  }, 120);
});
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    byId("copy").textContent = "Copied";
  } catch { byId("copy").textContent = "Copy the address bar"; }
  setTimeout(() => { byId("copy").textContent = "Copy link"; }, 2000);
});

// ---- what is shown
async function makeShown() {
  const wish = shownBy(location.hash), model = modelOf(wish.model);
  if (!wish.prompt) return;
  abort.abort();
  abort = new AbortController();
  fillForm(wish);
  if (model !== current) await choose(model.id);
  byId("title").textContent = wish.toward ? `${wish.prompt} \u2192 ${wish.toward}` : wish.prompt;
  byId("share").hidden = false;
  markCurrent(wish.toward ? "" : wish.prompt);
  offerFiles(null);
  setStages(wish.other && !wish.toward ? 2 : 1);
  const near = showFamiliarity(wish.toward ? [wish.prompt, wish.toward] : [wish.prompt], model, abort.signal).catch(() => {});
  if (wish.toward) await makeBetween(wish, model);
  else if (wish.other) await makeTwo(wish, [model, modelOf(wish.other)]);
  else await makeOne(wish, model);
  await near;
}

function setStages(number) {
  while (shown.length > number) shown.pop().end();
  while (shown.length < number) { shown.push(new Stage()); stages.append(shown.at(-1).element); }
  for (const stage of shown) stage.caption = "";
}

const objectOf = (wish, model) => ({
  prompt: wish.prompt, seed: wish.seed, name: model.id, camera: model.camera, detail: byId("detail").value,
});

async function makeOne(wish, model) {
  const object = objectOf(wish, model);
  offerFiles(object);
  await shown[0].show(object, say);
}

async function makeTwo(wish, two) {
  const last = ["", ""];
  const work = two.map((model, number) => {
    shown[number].caption = model.id;
    return shown[number].show(objectOf(wish, model), (sentence, progress, quietly) => {
      last[number] = progress;
      say(sentence, Math.min(...last.map((one) => one || 0)) || progress, quietly);
    });
  });
  shown[0].turntable.onturn = (degrees) => { shown[1]?.turntable.follow(degrees); };
  shown[1].turntable.onturn = (degrees) => { shown[0].turntable.follow(degrees); };
  await Promise.all(work);
  say("Both meshes are ready.", 100);
}

async function makeBetween(wish, model) {
  const words = `${wish.position}% of the way from ${wish.prompt} to ${wish.toward}`;
  await shown[0].showBetween({
    prompt: wish.prompt, toward: wish.toward, position: wish.position / 100, seed: wish.seed, model: model.id,
  }, words);
  shown[0].caption = "";
  say(`${wish.position}% of the way.`, 100);
}

// ---- the models
async function choose(name) {
  const { signal } = abort;
  current = modelOf(name);
  Object.assign(current, await get(`v1/models/${encodeURIComponent(current.id)}`, { signal }));
  byId("seed-choice").hidden = byId("another").hidden = !current.takes_seed;
  if (current.only_prompt && !byId("prompt").value) byId("prompt").value = current.only_prompt;
  showKnowledge(current);
  showGallery(current).catch(() => {});
}

async function start() {
  models = (await get("v1/models")).data;
  models.forEach((model, number) => { model.isFirst = number === 0; });
  for (const id of ["model", "other"]) {
    byId(id).replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  }
  byId("model-choice").hidden = byId("compare").hidden = models.length < 2;
  if (models.length > 1) byId("other").value = models[1].id;
  const wish = shownBy(location.hash);
  await choose(modelOf(wish.model).id);
  if (wish.prompt) await makeShown();
  else if (!SECTIONS.includes(location.hash)) byId("prompt").focus({ preventScroll: true });
}

prepareFiles(say);
byId("detail").addEventListener("change", () => makeShown().catch(sayProblem));
addEventListener("hashchange", () => {
  if (SECTIONS.includes(location.hash)) return;
  makeShown().catch(sayProblem);
  if (byId("stages").getBoundingClientRect().bottom < 200) byId("composer").scrollIntoView({ block: "start" });
});
start().catch(sayProblem);
