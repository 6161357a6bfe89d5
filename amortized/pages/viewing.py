"""Objects in 3D on a page: a GLB each, and a frame that shows one at a time.

The frame is a page for itself, `viewer/viewer.html` beside the objects, since its library model-viewer needs
a wider policy than pages with texts of others may have.
"""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path

from amortized.files import atomic_write_bytes, atomic_write_text
from amortized.pages.markup import text

VIEWER = ("viewer.html", "viewer.js", "model-viewer.js", "model-viewer-license.txt")
VIEWER_FILES = tuple(f"viewer/{name}" for name in VIEWER)
MAX_FROM_DISK = 500_000  # bytes of a GLB: a larger one is shown by a server only (amortized view)


def write_viewer(folder: Path) -> None:
    """Write the frame into `folder`/viewer. Raises OSError."""
    for name in VIEWER:
        data = resources.files("amortized.pages").joinpath("viewer", name).read_bytes()
        (folder / "viewer").mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(folder / "viewer" / name, data)


def write_script(path: Path) -> Path | None:
    """Write NAME.glb.js beside a GLB, from which a page on disk loads it; None if it is too large."""
    script = path.with_name(f"{path.name}.js")
    if path.stat().st_size > MAX_FROM_DISK:
        return None
    atomic_write_text(script, f'showObject("{base64.b64encode(path.read_bytes()).decode()}");\n')
    return script


def view_button(folder: str, name: str, title: str) -> str:
    """A button that opens NAME.glb of a folder in 3D; `pages/viewing.js` has its action."""
    label = f"View {text(title, 120)} in 3D"
    return (
        f'<button class="view" type="button" data-frame="{text(folder)}viewer/viewer.html" '
        f'data-object="{text(name)}" aria-pressed="false" aria-label="{label}">3D</button>'
    )
