// An object that turns: pictures from cameras around it, side by side in one strip, drawn on a canvas one at a time.
const SECONDS = 9;  // of a turn
const PIXELS = 3;  // of the pointer, a degree

export const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Turntable {
  #strip = null; #last = 0; #request = 0; #shown = -1;

  constructor(canvas) {
    this.canvas = canvas;
    this.degrees = 0;  // of the camera, from the first picture
    this.paused = still.matches;
    this.onturn = () => {};  // after the user has turned it
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.#strip) return;
      from = [event.clientX, this.degrees];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (from) this.turn(from[1] - (event.clientX - from[0]) / PIXELS);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { from = null; });
    this.held = () => from !== null;
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
      if (!step || !this.#strip) return;
      event.preventDefault();
      this.turn(this.degrees + step * 15);
    });
  }

  // Show a strip, a Blob; the object stays at its angle.
  async show(blob) {
    const strip = await createImageBitmap(blob);
    this.#strip?.close();
    [this.#strip, this.#shown] = [strip, -1];
    [this.canvas.width, this.canvas.height] = [strip.height, strip.height];
    this.#draw();
    this.play(!this.paused);
  }

  clear() {
    this.#strip?.close();
    this.#strip = null;
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    cancelAnimationFrame(this.#request);
  }

  turn(degrees) {
    this.degrees = degrees;
    this.#draw();
    this.onturn(degrees);
  }

  // Turn with another one.
  follow(degrees) {
    this.degrees = degrees;
    this.#draw();
  }

  play(playing) {
    this.paused = !playing;
    cancelAnimationFrame(this.#request);
    this.#last = performance.now();
    if (playing && this.#strip) this.#request = requestAnimationFrame((now) => this.#step(now));
  }

  #step(now) {
    if (!this.held()) this.degrees += 360 * (now - this.#last) / 1000 / SECONDS;
    this.#last = now;
    this.#draw();
    this.#request = requestAnimationFrame((next) => this.#step(next));
  }

  #draw() {
    if (!this.#strip) return;
    const size = this.#strip.height, number = this.#strip.width / size;
    const turns = this.degrees / 360;
    const view = Math.floor((turns - Math.floor(turns)) * number) % number;
    if (view === this.#shown) return;
    this.#shown = view;
    this.canvas.getContext("2d").drawImage(this.#strip, view * size, 0, size, size, 0, 0, size, size);
  }
}
