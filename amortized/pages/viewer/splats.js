"use strict";
// Gaussian splats on a canvas, by WebGL 2 alone: no worker, no library. Projection, cut-offs and order are those
// of the project's renderer, so that the picture is the same.

const PER_ROW = 682;  // splats, of the texture: 3 texels each, in at most 2048, which every GPU has
const BUCKETS = 65536;  // of depths, for sorting
const DAMAGED = "The file cannot be shown: it is damaged, or it holds no splats.";
const FOV = Math.PI / 6;  // vertical, as model-viewer's

const VERTEX = `#version 300 es
precision highp float;
precision highp usampler2D;
uniform usampler2D splats;
uniform mat3 view;  // its columns are the camera's right, down and forward
uniform vec3 eye;
uniform vec2 size;  // px
uniform float focal;  // px
uniform bool classic;  // trained without antialiasing
in uint number;
out vec2 offset;  // from the center, px
flat out vec3 conic;
flat out vec4 color;

void main() {
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside
  ivec2 at = ivec2(int(number % ${PER_ROW}u) * 3, int(number / ${PER_ROW}u));
  uvec4 first = texelFetch(splats, at, 0);
  vec4 turn = uintBitsToFloat(texelFetch(splats, at + ivec2(1, 0), 0));  // w, x, y, z
  vec3 scale = uintBitsToFloat(texelFetch(splats, at + ivec2(2, 0), 0).xyz);
  vec3 center = (uintBitsToFloat(first.xyz) - eye) * view;
  if (center.z < 0.01) return;
  vec2 limit = 0.65 * size / focal;  // beyond it the linearization does not steepen further
  vec2 tangent = clamp(center.xy / center.z, -limit, limit);
  float w = turn.x, x = turn.y, y = turn.z, z = turn.w;
  mat3 axes = mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
  // The covariance of the picture is (u.u, u.v; u.v, v.v), and its determinant |u x v|^2.
  vec3 u = focal / center.z * ((view[0] - tangent.x * view[2]) * axes) * scale;
  vec3 v = focal / center.z * ((view[1] - tangent.y * view[2]) * axes) * scale;
  float xx = dot(u, u) + 0.3, yy = dot(v, v) + 0.3, xy = dot(u, v);  // every splat covers about a pixel
  vec3 area = cross(u, v);
  float determinant = dot(area, area) + 0.3 * (xx + yy - 0.3);
  color = vec4((uvec4(first.w) >> uvec4(0, 8, 16, 24)) & 255u) / 255.0;
  if (!classic) color.a *= length(area) * inversesqrt(determinant);
  if (color.a < 1.0 / 255.0) return;
  conic = vec3(yy, -xy, xx) / determinant;
  float reach = min(3.33, sqrt(2.0 * log(255.0 * color.a)));
  offset = (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0) * reach * sqrt(vec2(xx, yy));
  vec2 place = (focal * center.xy / center.z + offset) / size * 2.0;
  gl_Position = vec4(place.x, -place.y, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 offset;
flat in vec3 conic;
flat in vec4 color;
out vec4 shown;

void main() {
  float power = 0.5 * (conic.x * offset.x * offset.x + conic.z * offset.y * offset.y);
  float alpha = min(0.999, color.a * exp(-power - conic.y * offset.x * offset.y));
  if (alpha < 1.0 / 255.0) discard;
  shown = vec4(color.rgb * alpha, alpha);
}`;

class SplatView {
  // `classic`: the splats were trained without antialiasing. Throws an Error, one sentence, without WebGL 2.
  constructor(canvas, classic = false) {
    Object.assign(this, { canvas, classic, splats: null, target: [0, 0, 0], fov: FOV, limits: [0, Infinity] });
    this.orbit = { theta: 0, phi: 1.309, radius: 1 };  // around +y from +z, from +y, distance
    this.onturn = null;  // called when the user has turned the object, or has come nearer
    this.gl = canvas.getContext("webgl2", { antialias: false, depth: false });
    if (!this.gl) throw new Error("Splats cannot be shown: this browser has no WebGL 2, or it is off.");
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => { this.#upload(); this.draw(); });
    new ResizeObserver(() => this.#resize()).observe(canvas);
    listen(canvas, (turn, rise, zoom) => {
      const { theta, phi, radius } = this.orbit;
      this.place({ theta: theta + turn, phi: phi + rise, radius: radius * zoom });
      this.onturn?.();
    });
  }

  // Show the splats in the bytes of a file. Throws an Error if it is damaged, or too large for the GPU.
  load(bytes, isPly) {
    this.splats = isPly ? readPly(bytes) : readSplat(bytes);
    const { center, radius } = extent(this.splats), distance = 1.05 * radius / Math.sin(this.fov / 2);
    this.target = center;
    this.limits = [distance / 4, distance * 2];
    this.orbit.radius = distance;
    this.#upload();
    this.#resize();
  }

  // Turn to an orbit, within the limits.
  place({ theta, phi, radius }) {
    const [least, most] = this.limits;
    phi = Math.min(Math.max(phi, 0.01), Math.PI - 0.01);
    this.orbit = { theta, phi, radius: Math.min(Math.max(radius, least), most) };
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }

  draw() {
    const { gl, canvas, splats, target, orbit: { theta, phi, radius } } = this;
    if (!splats || gl.isContextLost()) return;
    const out = [Math.sin(phi) * Math.sin(theta), Math.cos(phi), Math.sin(phi) * Math.cos(theta)];
    const forward = out.map((value) => -value), right = [Math.cos(theta), 0, -Math.sin(theta)];
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniformMatrix3fv(this.places.view, false, [...right, ...cross(forward, right), ...forward]);
    gl.uniform3fv(this.places.eye, target.map((value, axis) => value + radius * out[axis]));
    gl.uniform2f(this.places.size, canvas.width, canvas.height);
    gl.uniform1f(this.places.focal, canvas.height / 2 / Math.tan(this.fov / 2));
    gl.uniform1i(this.places.classic, this.classic);
    gl.bufferData(gl.ARRAY_BUFFER, farthestFirst(splats, forward), gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, splats.count);
  }

  #resize() {
    const { canvas } = this, scale = Math.min(devicePixelRatio, 2);
    const sizes = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * scale)));
    if (canvas.width !== sizes[0] || canvas.height !== sizes[1]) [canvas.width, canvas.height] = sizes;
    this.draw();
  }

  // Give the GPU the program and the splats, at the start and when it has lost them.
  #upload() {
    const { gl, splats } = this, program = gl.createProgram();
    for (const [kind, code] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, code);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
      throw new Error("Splats cannot be shown: the graphics driver refuses their program.");
    gl.useProgram(program);
    const names = ["view", "eye", "size", "focal", "classic"];
    this.places = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(program, name)]));
    const rows = splats.texels.length / (12 * PER_ROW);
    if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE))
      throw new Error(`${splats.count.toLocaleString("en")} splats are too many for this graphics card.`);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    const sizes = [3 * PER_ROW, rows, 0];
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32UI, ...sizes, gl.RGBA_INTEGER, gl.UNSIGNED_INT, splats.texels);
    const place = gl.getAttribLocation(program, "number");
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(place);
    gl.vertexAttribIPointer(place, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(place, 1);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);  // colors are premultiplied
  }
}

// The numbers of all splats, the farthest along a direction first: a counting sort.
function farthestFirst({ count, floats }, [x, y, z]) {
  const depths = new Float32Array(count), ends = new Uint32Array(BUCKETS + 1), order = new Uint32Array(count);
  let least = Infinity, most = -Infinity;
  for (let i = 0; i < count; i++) {
    const depth = depths[i] = x * floats[12 * i] + y * floats[12 * i + 1] + z * floats[12 * i + 2];
    if (depth < least) least = depth;
    if (depth > most) most = depth;
  }
  const scale = (BUCKETS - 1) / Math.max(most - least, 1e-30), bucket = (i) => (most - depths[i]) * scale | 0;
  for (let i = 0; i < count; i++) ends[bucket(i) + 1]++;
  for (let i = 0; i < BUCKETS; i++) ends[i + 1] += ends[i];
  for (let i = 0; i < count; i++) order[ends[bucket(i)]++] = i;
  return order;
}

// Center and radius of the splats that can be seen, without the few farthest, which may be stray.
function extent({ count, floats, bytes }) {
  const all = Array.from({ length: count }, (_, i) => i), opaque = all.filter((i) => bytes[48 * i + 15] >= 128);
  const shown = opaque.length ? opaque : all, at = (share) => Math.round(share * (shown.length - 1));
  const center = [0, 1, 2].map((axis) => {
    const values = Float32Array.from(shown, (i) => floats[12 * i + axis]).sort();
    return (values[at(0.005)] + values[at(0.995)]) / 2;
  });
  const reaches = Float32Array.from(shown, (i) => {
    const [x, y, z] = center.map((value, axis) => floats[12 * i + axis] - value);
    return Math.hypot(x, y, z) + Math.max(floats[12 * i + 8], floats[12 * i + 9], floats[12 * i + 10]);
  }).sort();
  return { center, radius: Math.max(reaches[at(0.995)], 1e-6) };
}

// ---- files ----------------------------------------------------------------------------------------

// Room for splats, 12 numbers each: position, color in 4 bytes; rotation w, x, y, z; scale, nothing.
function room(count) {
  const texels = new Uint32Array(12 * PER_ROW * Math.ceil(count / PER_ROW));
  const floats = new Float32Array(texels.buffer), bytes = new Uint8ClampedArray(texels.buffer);
  const put = (i, position, rgba, rotation, scale) => {
    const length = Math.hypot(...rotation) || 1;
    if (![...position, ...rotation, ...scale].every(Number.isFinite)) throw new Error(DAMAGED);
    floats.set(position, 12 * i);
    floats.set(rotation.map((value) => value / length), 12 * i + 4);
    floats.set(scale, 12 * i + 8);
    bytes.set(rgba, 48 * i + 12);
  };
  return { count, texels, floats, bytes, put };
}

// A file .splat: position and scale in 3 floats each, red, green, blue and opacity, and rotation, in bytes.
function readSplat(file) {
  if (!file.byteLength || file.byteLength % 32) throw new Error(DAMAGED);
  const splats = room(file.byteLength / 32), view = new DataView(file), bytes = new Uint8Array(file);
  for (let i = 0; i < splats.count; i++) {
    const at = 32 * i, float = (k) => view.getFloat32(at + 4 * k, true);
    const rotation = Array.from(bytes.subarray(at + 28, at + 32), (value) => value - 128);
    splats.put(i, [float(0), float(1), float(2)], bytes.subarray(at + 24, at + 28), rotation,
      [float(3), float(4), float(5)]);
  }
  return splats;
}

// The PLY of 3D Gaussian Splatting: opacities are logits, scales logarithms. Colors are those of degree 0.
function readPly(file) {
  const start = new TextDecoder("latin1").decode(file.slice(0, 65536)), end = start.indexOf("end_header\n");
  const lines = start.slice(0, end).split("\n").map((line) => line.trim().split(/\s+/));
  const elements = lines.filter(([word]) => word === "element"), offsets = {};
  let stride = 0;
  for (const [word, type, name] of lines) {
    if (word !== "property") continue;
    if (type !== "float" && type !== "float32") throw new Error(DAMAGED);
    offsets[name] = stride;
    stride += 4;
  }
  const count = elements.length === 1 && elements[0][1] === "vertex" ? Number(elements[0][2]) : 0;
  const names = [["x", "y", "z"], ["f_dc_0", "f_dc_1", "f_dc_2", "opacity"],
    ["rot_0", "rot_1", "rot_2", "rot_3"], ["scale_0", "scale_1", "scale_2"]];
  const data = end + "end_header\n".length, isBinary = /^format binary_little_endian /m.test(start);
  if (end < 0 || !isBinary || !(count > 0) || data + count * stride > file.byteLength ||
      !names.flat().every((name) => name in offsets)) throw new Error(DAMAGED);
  const splats = room(count), view = new DataView(file);
  const columns = names.map((group) => group.map((name) => data + offsets[name]));
  for (let i = 0; i < count; i++) {
    const [position, color, rotation, scale] =
      columns.map((group) => group.map((column) => view.getFloat32(column + i * stride, true)));
    const opacity = 255 / (1 + Math.exp(-color.pop()));
    const rgba = [...color.map((value) => 255 * (0.28209479177387814 * value + 0.5)), opacity];
    splats.put(i, position, rgba, rotation, scale.map(Math.exp));
  }
  return splats;
}

// ---- the user -------------------------------------------------------------------------------------

// Call turn(around, down, times the distance) as the pointer, two fingers, the wheel or a key requires.
function listen(canvas, turn) {
  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId), now = [event.clientX, event.clientY];
    if (!before) return;
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
    if (other) return turn(0, 0, apart(before) / apart(now));
    const radians = 2 * Math.PI / canvas.clientHeight;
    turn((before[0] - now[0]) * radians, (before[1] - now[1]) * radians, 1);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    turn(0, 0, Math.exp(0.1 * Math.sign(event.deltaY)));
  }, { passive: false });
  const keys = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0],
    PageUp: [0, 0, -1], PageDown: [0, 0, 1], "+": [0, 0, -1], "-": [0, 0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const key = keys[event.key];
    if (!key || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    turn(key[0] * Math.PI / 12, key[1] * Math.PI / 12, Math.exp(0.1 * key[2]));
  });
}

function cross([a, b, c], [x, y, z]) {
  return [b * z - c * y, c * x - a * z, a * y - b * x];
}
