// Where one object is shown: pictures of its field first, which turn, then its mesh in 3D.
import { file, make, request } from "./api.js";
import { still, Turntable } from "./turntable.js";

const FAST = { views: 8, size: 96 };
const SMOOTH = { views: 24, size: 96 };
const FIRST_DEGREES = 20;  // azimuth of the first picture; all are 20 degrees above the horizon
export const DETAIL = {
  quick: { resolution: 128, faces: 8000, texture: 512 },
  fine: { resolution: 256, faces: 20000, texture: 1024 },
};
const STAGES = {
  begin: "finding the surface", extract: "finding the surface", simplify: "simplifying the mesh", colors: "coloring the mesh",
  texture: "baking the texture", measure: "checking the mesh", files: "writing the file",
};
export let busy = 0;  // previews that somebody waits for

export class Stage {
  #frame = null; #address = ""; #abort = null;

  constructor() {
    const template = document.getElementById("stage-template").content;
    this.element = document.importNode(template, true).querySelector("figure");
    this.canvas = this.element.querySelector("canvas");
    this.turntable = new Turntable(this.canvas);
    this.pause = this.element.querySelector(".pause");
    this.pause.addEventListener("click", () => this.#play(this.pause.dataset.playing !== "true"));
    this.#play(!still.matches);
  }

  set caption(text) { this.element.querySelector("figcaption").textContent = text; }
  #kind(text) { this.element.querySelector(".kind").textContent = text; }

  // Stop what is being made, and begin with something else; returns the signal of that.
  begin() {
    this.#abort?.abort();
    this.#abort = new AbortController();
    return this.#abort.signal;
  }

  end() { this.#abort?.abort(); this.#hideMesh(); this.turntable.clear(); this.element.remove(); }

  // Show pictures of an object, then its mesh. `say` gets (sentence, progress). Throws Problem.
  async show({ prompt, seed, model, name, camera, detail }, say) {
    const signal = this.begin(), wish = { prompt, seed, model: name };
    this.#hideMesh();
    say("Making the preview.", 0);
    await this.#waitedFor(async () => this.#preview(await make({ ...wish, ...FAST, wait: 30 }, { signal }), prompt, signal));
    say("This is the field; the mesh follows.", 10);
    const smooth = make({ ...wish, ...SMOOTH, wait: 30 }, { signal })
      .then((status) => this.#frame ? null : this.#preview(status, prompt, signal)).catch(() => {});
    const status = await make({ ...wish, ...DETAIL[detail], formats: ["glb"], preview: false }, {
      signal, onEvent: (progress, stage) => say(STAGES[stage] ? `Mesh: ${STAGES[stage]}.` : "The mesh waits for its turn.", Math.max(10, progress), true),
    });
    await smooth;
    await this.#mesh(await file(status, "object.glb", signal), prompt, camera, signal);
    say("The mesh is ready.", 100);
    return status;
  }

  // Show the object on the way from one prompt to another.
  async showBetween(wish, words) {
    const signal = this.begin();
    const blob = await this.#waitedFor(async () => (await request("v1/between", { json: { ...wish, ...FAST }, signal })).blob());
    this.#hideMesh();
    await this.#draw(blob, words, "Field");
  }

  async #waitedFor(work) {
    busy += 1;
    try { return await work(); } finally { busy -= 1; }
  }

  async #preview(status, words, signal) {
    const blob = await file(status, "preview.png", signal);
    if (!signal.aborted) await this.#draw(blob, words, "Field");
  }

  async #draw(blob, words, kind) {
    await this.turntable.show(blob);
    this.#kind(kind);
    this.canvas.setAttribute("aria-label", `${words}: turn it with the pointer or the arrow keys`);
    delete this.element.dataset.empty;
    this.pause.hidden = false;
  }

  // The viewer is a page for itself, whose library needs a wider policy than this one has.
  async #mesh(blob, words, camera, signal) {
    this.#hideMesh();
    this.#address = URL.createObjectURL(blob);
    const frame = this.#frame = document.createElement("iframe");
    frame.title = `${words}, in 3D`;
    frame.src = "static/viewer/viewer.html#" + new URLSearchParams([["object.glb", ""], ["blob", this.#address]]);
    this.element.querySelector(".picture").insertBefore(frame, this.element.querySelector(".kind"));
    const state = await loaded(frame, signal);
    if (signal.aborted || this.#frame !== frame) return;
    if (state !== "loaded") { this.#hideMesh(); throw new Error("The mesh cannot be shown here: WebGL is off. It can be downloaded."); }
    this.#place(camera);
    frame.dataset.shown = "";
    this.canvas.tabIndex = -1;
    this.#kind("Mesh");
    this.turntable.play(false);
    this.#play(this.pause.dataset.playing === "true");
  }

  // The camera of the pictures, so that the mesh takes their place.
  #place({ distance, fovy_deg }) {
    const viewer = this.#viewer;
    const degrees = FIRST_DEGREES + this.turntable.degrees;
    viewer.cameraTarget = "0m 0m 0m";
    viewer.minCameraOrbit = `auto auto ${distance / 3}m`;
    viewer.maxCameraOrbit = `auto auto ${distance * 2}m`;
    viewer.minFieldOfView = viewer.maxFieldOfView = viewer.fieldOfView = `${fovy_deg}deg`;
    viewer.cameraOrbit = `${degrees}deg 70deg ${distance}m`;
    viewer.autoRotateDelay = 0;
    viewer.rotationPerSecond = "-40deg";
    viewer.jumpCameraToGoal();
  }

  get #viewer() { return this.#frame?.contentDocument?.querySelector("model-viewer"); }

  #play(playing) {
    this.pause.textContent = playing ? "Pause" : "Turn";
    this.pause.dataset.playing = playing;
    if (this.#viewer) this.#viewer.autoRotate = playing;
    else this.turntable.play(playing);
  }

  #hideMesh() {
    this.#frame?.remove();
    if (this.#address) URL.revokeObjectURL(this.#address);
    [this.#frame, this.#address] = [null, ""];
    this.canvas.tabIndex = 0;
    this.turntable.play(this.pause?.dataset.playing === "true");
  }
}

// The state of a viewer once it has one.
async function loaded(frame, signal) {
  for (let tries = 0; tries < 1200 && !signal.aborted; tries++) {
    const state = frame.contentDocument?.body?.dataset.state;
    if (state) return state;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return "failed";
}
