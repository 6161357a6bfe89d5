// Files to download, made when they are wanted.
import { file, make } from "./api.js";
import { DETAIL } from "./stage.js";

const NAMES = {
  glb: "object.glb", ply: "object.ply", obj: "object.obj.zip", stl: "object.stl", "3mf": "object.3mf",
  usdz: "object.usdz", mp4: "turntable.mp4",
};
const byId = (id) => document.getElementById(id);
let shown = null, abort = new AbortController();

// Offer the files of an object; null: of none.
export function offerFiles(object) {
  abort.abort();
  abort = new AbortController();
  shown = object;
  byId("files").hidden = object === null;
  for (const button of byId("formats").children) button.disabled = false;
}

export function prepareFiles(say) {
  byId("formats").append(...Object.keys(NAMES).map((format) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = format.toUpperCase();
    button.setAttribute("aria-label", `Download as ${format.toUpperCase()}`);
    button.addEventListener("click", () => download(format, button, say));
    return button;
  }));
}

async function download(format, button, say) {
  const { signal } = abort, { prompt, seed, name } = shown, name_ = NAMES[format], label = format.toUpperCase();
  button.disabled = true;
  say(`Making the ${label}.`, 0);
  try {
    const wish = { prompt, seed, model: name, preview: false, formats: [format], ...DETAIL[byId("detail").value] };
    const status = await make(wish, { signal, onEvent: (progress) => say(`Making the ${label}.`, progress, true) });
    const link = document.createElement("a"), address = URL.createObjectURL(await file(status, name_, signal));
    link.href = address;
    link.download = `${status.id.slice(0, 16)}.${name_.split(".").slice(1).join(".")}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    say(`The ${label} is in your downloads.`, 100);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, null);
  }
  button.disabled = false;
}
