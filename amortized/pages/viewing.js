// Buttons that show an object in 3D in their card: one at a time, since each takes a WebGL context.
let opened = null;

function closeObject() {
  if (!opened) return;
  opened.frame.remove();
  opened.button.setAttribute("aria-pressed", "false");
  opened.button.textContent = "3D";
  opened = null;
}

function openObject(button) {
  const again = opened?.button === button;
  closeObject();
  if (again) return;
  const frame = document.createElement("iframe");
  frame.className = "object";
  frame.title = button.getAttribute("aria-label");
  frame.src = button.dataset.frame + "#" + encodeURIComponent(button.dataset.object);
  button.closest("[data-stage]").append(frame);
  button.setAttribute("aria-pressed", "true");
  button.textContent = "Close";
  opened = { button, frame };
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.view");
  if (button) openObject(button);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && opened) { const { button } = opened; closeObject(); button.focus(); }
});
