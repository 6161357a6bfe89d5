"use strict";
const object = document.getElementById("object"), problem = document.getElementById("problem");
const name = decodeURIComponent(location.hash.slice(1));

function fail(reason) {
  document.body.dataset.state = "failed";
  problem.textContent = reason;
  problem.hidden = false;
}

// The script NAME.glb.js calls this with the file in base64.
window.showObject = (base64) => { object.src = "data:model/gltf-binary;base64," + base64; };

object.addEventListener("load", () => { document.body.dataset.state = "loaded"; });
object.addEventListener("error", () => fail("This browser cannot show the object (WebGL may be off)."));
if (!/^[\p{L}\p{N}_][\p{L}\p{N}_.-]*$/u.test(name)) {
  fail("The address names no object.");
} else if (location.protocol === "file:") {
  const script = document.createElement("script");
  script.src = encodeURIComponent(name) + ".glb.js";
  script.onerror = () => fail("This object does not open from disk: use amortized view and the name of its folder.");
  document.body.append(script);
} else {
  object.src = "../" + encodeURIComponent(name) + ".glb";
}
