"""Objects in 3D on a page: a file each, and a frame that shows one, or several side by side.

An object is a mesh (.glb) or Gaussian splats (.splat, or the PLY of 3D Gaussian Splatting as .splats.ply).
The frame is a page for itself, `viewer/viewer.html` beside the objects, since its library of meshes,
model-viewer, needs a wider policy than pages with texts of others may have.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Collection, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote, urlencode

from amortized.files import atomic_write_bytes, atomic_write_text
from amortized.pages.markup import one_line, text
from amortized.untrusted import LFS_POINTER, MiB, inside, open_regular, read_bytes

FOLDER = "viewer"
VIEWER = ("viewer.html", "viewer.js", "splats.js", "model-viewer.js", "model-viewer-license.txt")
VIEWER_FILES = tuple(f"{FOLDER}/{name}" for name in VIEWER)
SUFFIXES = (".glb", ".splat", ".splats.ply")  # of the files that the frame shows
# Bytes of an object: a larger one is shown by a server only (amortized view). A GLB of 20,000 triangles with
# a texture of 1024 x 1024 has some 0.9 MB, and 20,000 splats have 0.6 MB.
MAX_FROM_DISK = 4_000_000
START, END = 'showObject("', '");\n'  # of a script
MEDIA_LIMIT = 256 * MiB
SPLAT_BYTES = 32  # in a .splat


def write_viewer(folder: Path) -> None:
    """Write the frame into `folder`/viewer; files that are there already stay. Raises OSError."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name in VIEWER:
        data = resources.files("amortized.pages").joinpath(FOLDER, name).read_bytes()
        path = folder / FOLDER / name
        if not path.is_file() or path.read_bytes() != data:
            atomic_write_bytes(path, data)


def script_of(path: Path) -> Path:
    """The script that holds an object's data, from which a page on disk loads it: e.g. viewer/NAME.glb.js."""
    return path.parent / FOLDER / f"{path.name}.js"


def write_script(path: Path) -> Path | None:
    """Write the script of an object unless it is there; None if the object is too large. Raises OSError."""
    script, status = script_of(path), path.stat()
    if status.st_size > MAX_FROM_DISK:
        return None
    length = len(START) + 4 * -(-status.st_size // 3) + len(END)
    if script.is_file():
        written = script.stat()
        if written.st_size == length and written.st_mtime_ns >= status.st_mtime_ns:
            return script
    data = base64.b64encode(read_bytes(path, MAX_FROM_DISK)).decode()
    atomic_write_text(script, f"{START}{data}{END}")
    return script


def remove_scripts(folder: Path, used: Collection[str]) -> None:
    """Remove the scripts in `folder`/viewer of all objects but those named in `used`. Raises OSError."""
    for script in (path for suffix in SUFFIXES for path in (folder / FOLDER).glob(f"*{suffix}.js")):
        if script.name.removesuffix(".js") not in used and script.is_file() and not script.is_symlink():
            with script.open("rb") as file:
                is_ours = file.read(len(START)) == START.encode()
            if is_ours:
                script.unlink()


def find_media(folder: Path, path: str) -> bool:
    """Whether a path relative to `folder` is that of a GLB, .splat or MP4 inside it.

    A GLB and an MP4 show in their first bytes, a .splat in its size.
    """
    try:
        with open_regular(inside(folder, path), MEDIA_LIMIT) as file:
            head, size = file.read(8), os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        return False
    if path.endswith(".splat"):
        return size > 0 and size % SPLAT_BYTES == 0 and not LFS_POINTER.startswith(head)
    if path.endswith(".glb"):
        return head == b"glTF\2\0\0\0"
    return path.endswith(".mp4") and head[4:] == b"ftyp"


def frame_address(folder: str, objects: Mapping[str, str], classic: Collection[str] = ()) -> str:
    """The address of the frame that shows files of a folder, given a label or "" for each name.

    `classic` are those of splats that were trained without antialiasing.
    """
    flags = "".join(f"&classic={quote(name, safe='')}" for name in objects if name in classic)
    return f"{quote(folder)}viewer/viewer.html#{_query(objects)}{flags}"


def objects_button(folder: str, objects: Mapping[str, str], title: str, classic: Collection[str] = ()) -> str:
    """A button that opens the frame of `frame_address`; `pages/viewing.js` has its action."""
    frame = frame_address(folder, objects, classic)
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
