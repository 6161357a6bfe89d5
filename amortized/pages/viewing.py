"""Objects in 3D on a page: a GLB each, and a frame that shows one, or several side by side.

The frame is a page for itself, `viewer/viewer.html` beside the objects, since its library model-viewer needs
a wider policy than pages with texts of others may have.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote, urlencode

from amortized.files import atomic_write_bytes, atomic_write_text
from amortized.pages.markup import one_line, text
from amortized.untrusted import MiB, inside, open_regular

VIEWER = ("viewer.html", "viewer.js", "model-viewer.js", "model-viewer-license.txt")
VIEWER_FILES = tuple(f"viewer/{name}" for name in VIEWER)
MEDIA_LIMIT = 256 * MiB
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


def find_media(folder: Path, path: str) -> bool:
    """Whether a path relative to `folder` is that of a GLB or MP4 inside it, by its name and first bytes."""
    try:
        with open_regular(inside(folder, path), MEDIA_LIMIT) as file:
            head = file.read(8)
    except (OSError, ValueError):
        return False
    if path.endswith(".glb"):
        return head == b"glTF\2\0\0\0"
    return path.endswith(".mp4") and head[4:] == b"ftyp"


def view_button(folder: str, name: str, title: str) -> str:
    """A button that opens NAME.glb of a folder in 3D; `pages/viewing.js` has its action."""
    return objects_button(folder, {name: ""}, title)


def objects_button(folder: str, objects: Mapping[str, str], title: str) -> str:
    """As `view_button`, for several objects side by side, given the label of each NAME."""
    frame = f"{quote(folder)}viewer/viewer.html#{_query(objects)}"
    return _button(f'data-frame="{escape(frame)}"', f"View {one_line(title, 120)} in 3D", "3D")


def video_button(videos: Mapping[str, str], title: str) -> str:
    """A button that shows videos side by side, given the label of each path."""
    label = f"Show turntables of {one_line(title, 120)}"
    return _button(f'data-videos="{escape(_query(videos))}"', label, "Turntable")


def _button(data: str, label: str, words: str) -> str:
    return (
        f'<button class="view" type="button" {data} aria-pressed="false" aria-label="{text(label)}">'
        f"{words}</button>"
    )


def _query(labels: Mapping[str, str]) -> str:
    """Names with their labels, as `URLSearchParams` reads them."""
    plain = {name: one_line(label, 60) for name, label in labels.items()}
    return urlencode(plain, quote_via=quote, errors="replace")
