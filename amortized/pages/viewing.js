// Buttons that show objects in 3D or turntables in their card: one at a time, since 3D takes a WebGL context.
let opened = null;

function closeShown() {
  if (!opened) return;
  opened.shown.remove();
  opened.button.setAttribute("aria-pressed", "false");
  opened.button.textContent = opened.words;
  opened = null;
}

function openShown(button) {
  const again = opened?.button === button;
  closeShown();
  if (again) return;
  const shown = button.dataset.frame ? frameOf(button) : videosOf(button);
  (button.closest("[data-stage]") ?? button.closest("[data-card]").querySelector("[data-stage]")).append(shown);
  opened = { button, shown, words: button.textContent };
  button.setAttribute("aria-pressed", "true");
  button.textContent = "Close";
  shown.scrollIntoView({ block: "nearest" });
}

function frameOf(button) {
  const frame = document.createElement("iframe");
  frame.className = "object";
  frame.title = button.getAttribute("aria-label");
  frame.src = button.dataset.frame;
  return frame;
}

// Videos side by side, with their labels; they start together once all of them are there.
function videosOf(button) {
  const row = document.createElement("div"), waiting = [];
  row.className = "videos";
  for (const [path, label] of new URLSearchParams(button.dataset.videos)) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const video = document.createElement("video");
    Object.assign(video, { loop: true, muted: true, playsInline: true, preload: "auto" });
    video.setAttribute("aria-label", button.getAttribute("aria-label") + ": " + label);
    waiting.push(new Promise((resolve) => { video.oncanplaythrough = video.onerror = resolve; }));
    video.src = path.split("/").map(encodeURIComponent).join("/");
    caption.textContent = label;
    caption.dir = "auto";
    figure.append(video, caption);
    row.append(figure);
  }
  Promise.all(waiting).then(() => row.querySelectorAll("video").forEach((video) => video.play().catch(() => {})));
  return row;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.view");
  if (button) openShown(button);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && opened) { const { button } = opened; closeShown(); button.focus(); }
});
