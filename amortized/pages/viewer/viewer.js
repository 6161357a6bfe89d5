"use strict";
const viewers = new Map();  // of the scripts from disk

// A script NAME.glb.js calls this with the file in base64.
window.showObject = (base64) => {
  viewers.get(document.currentScript).src = "data:model/gltf-binary;base64," + base64;
};

// Show an object; resolves to its viewer, or to null if it cannot be shown.
function show(name, label) {
  const figure = document.importNode(document.getElementById("object").content, true).querySelector("figure");
  const viewer = figure.querySelector("model-viewer"), problem = figure.querySelector(".problem");
  viewer.alt = (label || "The object") + " in 3D: turn it with the pointer or the arrow keys";
  figure.querySelector("figcaption").textContent = label;
  document.body.append(figure);
  return new Promise((resolve) => {
    const fail = (reason) => {
      problem.textContent = reason;
      problem.hidden = false;
      resolve(null);
    };
    viewer.addEventListener("load", () => resolve(viewer));
    viewer.addEventListener("error", () => fail("The object cannot be shown: it is damaged or missing, or WebGL is off."));
    if (!/^[\p{L}\p{N}_][\p{L}\p{N}_.-]*$/u.test(name)) {
      fail("The address names no object.");
    } else if (location.protocol === "file:") {
      const script = document.createElement("script");
      viewers.set(script, viewer);
      script.src = encodeURIComponent(name) + ".glb.js";
      script.onerror = () =>
        fail("This object does not open from disk: use amortized view and the name of its folder.");
      document.body.append(script);
    } else {
      viewer.src = "../" + encodeURIComponent(name) + ".glb";
    }
  });
}

// All cameras have the same distance, so that sizes can be compared, and move together. Zooming changes the
// distance alone, since model-viewer limits the field of view of each by its own size.
function link(several) {
  const distance = Math.max(...several.map((viewer) => viewer.getCameraOrbit().radius));
  for (const viewer of several) {
    // The limits of each would follow from its own size.
    viewer.minCameraOrbit = "auto auto " + distance / 2 + "m";
    viewer.maxCameraOrbit = "auto auto " + distance + "m";
    viewer.minFieldOfView = viewer.maxFieldOfView = viewer.fieldOfView = "30deg";
    place(viewer, "auto auto " + distance + "m");
    viewer.addEventListener("camera-change", (event) => {
      if (event.detail.source !== "user-interaction") return;
      for (const other of several)
        if (other !== viewer) place(other, viewer.getCameraOrbit().toString());
    });
  }
}

function place(viewer, orbit) {
  viewer.cameraOrbit = orbit;
  viewer.jumpCameraToGoal();
}

const names = [...new URLSearchParams(location.hash.slice(1))];
Promise.all((names.length ? names : [["", ""]]).map(([name, label]) => show(name, label))).then((shown) => {
  const loaded = shown.filter(Boolean);
  if (loaded.length > 1) link(loaded);
  document.body.dataset.state = loaded.length === shown.length ? "loaded" : "failed";
});
