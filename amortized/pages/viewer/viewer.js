"use strict";
// The kinds of objects by the ends of their files' names: each returns, once its object is shown, how to turn it.
const KINDS = { ".glb": showMesh, ".splat": showSplats, ".splats.ply": showSplats };
const query = new URLSearchParams(location.hash.slice(1));
const classic = query.getAll("classic");  // files of splats that were trained without antialiasing
query.delete("classic");
const blobs = query.getAll("blob");  // addresses of the objects' data, from a page of this server that has it
query.delete("blob");
const receivers = new Map();  // of the scripts from disk

// A script NAME.js calls this with the file NAME in base64.
window.showObject = (base64) => {
  receivers.get(document.currentScript)("data:application/octet-stream;base64," + base64);
};

// Show an object; resolves to how to turn it, or to null if it cannot be shown.
async function show(name, label) {
  const figure = document.importNode(document.getElementById("object").content, true).querySelector("figure");
  figure.querySelector("figcaption").textContent = label;
  document.body.append(figure);
  try {
    const kind = Object.keys(KINDS).find((end) => name.endsWith(end));
    if (!kind || !/^[\p{L}\p{N}_][\p{L}\p{N}_.-]*$/u.test(name)) throw new Error("The address names no object.");
    const words = (label || "The object") + " in 3D: turn it with the pointer or the arrow keys";
    return await KINDS[kind](figure, name, words);
  } catch (error) {
    figure.querySelector("canvas")?.remove();
    const problem = figure.querySelector(".problem");
    problem.textContent = error.message;
    problem.hidden = false;
    return null;
  }
}

// The address of an object's data: from disk, where a page cannot read files, a script has it.
async function addressOf(name) {
  const blob = blobs.shift();
  if (blob?.startsWith(`blob:${location.origin}/`)) return blob;
  if (location.protocol !== "file:") return "../" + encodeURIComponent(name);
  const reason = "This object does not open from disk: use amortized view and the name of its folder.";
  let address;
  await run(encodeURIComponent(name) + ".js", reason, (data) => { address = data; });
  if (!address) throw new Error(reason);
  return address;
}

// Run a script beside this page; resolves when it has run. `receiver` gets the object that it shows.
function run(source, reason, receiver = null) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    Object.assign(script, { src: source, onload: resolve, onerror: () => reject(new Error(reason)) });
    receivers.set(script, receiver);
    document.body.append(script);
  });
}

let library = null;  // of meshes: large, and loaded for them alone

async function showMesh(figure, name, words) {
  library ??= run("model-viewer.js", "The object cannot be shown: the folder of this page lacks model-viewer.js.");
  await library;
  const viewer = document.importNode(document.getElementById("mesh").content, true).querySelector("model-viewer");
  viewer.alt = words;
  figure.prepend(viewer);
  await addressOf(name).then((address) => new Promise((resolve, reject) => {
    const reason = "The object cannot be shown: it is damaged or missing, or WebGL is off.";
    viewer.addEventListener("load", resolve);
    viewer.addEventListener("error", () => reject(new Error(reason)));
    viewer.src = address;
  }));
  const place = ({ theta, phi, radius }) => {
    viewer.cameraOrbit = `${theta}rad ${phi}rad ${radius}m`;
    viewer.jumpCameraToGoal();
  };
  return {
    orbit: () => viewer.getCameraOrbit(),
    place,
    // Zooming changes the distance alone, since model-viewer limits the field of view of each by its own size.
    limit(least, most) {
      viewer.minCameraOrbit = `auto auto ${least}m`;
      viewer.maxCameraOrbit = `auto auto ${most}m`;
      viewer.minFieldOfView = viewer.maxFieldOfView = viewer.fieldOfView = "30deg";
    },
    onTurn: (action) => viewer.addEventListener("camera-change", (event) => {
      if (event.detail.source === "user-interaction") action();
    }),
  };
}

async function showSplats(figure, name, words) {
  const canvas = document.importNode(document.getElementById("splats").content, true).querySelector("canvas");
  canvas.setAttribute("aria-label", words);
  figure.prepend(canvas);
  const view = canvas.view = new SplatView(canvas, classic.includes(name));
  const file = await fetch(await addressOf(name));
  if (!file.ok) throw new Error("The object cannot be shown: its file is missing.");
  view.load(await file.arrayBuffer(), name.endsWith(".ply"));
  return {
    orbit: () => view.orbit,
    place: (orbit) => view.place(orbit),
    limit(least, most) { view.limits = [least, most]; },
    onTurn(action) { view.onturn = action; },
  };
}

// All cameras have the same distance, so that sizes can be compared, and move together.
function link(several) {
  const distance = Math.max(...several.map((one) => one.orbit().radius));
  for (const one of several) {
    one.limit(distance / 2, distance);
    one.place({ ...several[0].orbit(), radius: distance });
    one.onTurn(() => several.forEach((other) => { if (other !== one) other.place(one.orbit()); }));
  }
}

const names = [...query];
Promise.all((names.length ? names : [["", ""]]).map(([name, label]) => show(name, label))).then((shown) => {
  const loaded = shown.filter(Boolean);
  if (loaded.length > 1) link(loaded);
  document.body.dataset.state = loaded.length === shown.length ? "loaded" : "failed";
});
