"""Write the page of a folder of generated objects, and the viewer that shows them in 3D."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from amortized.files import atomic_write_text
from amortized.gallery.cards import opens
from amortized.gallery.objects import Generated, objects_of
from amortized.gallery.page import KIND, page
from amortized.pages import MAX_FROM_DISK, is_page_of, remove_scripts, write_script, write_viewer
from amortized.pages.cards import MAX_CARDS
from amortized.untrusted import inside, open_regular, reason_of, short

PAGE = "index.html"
PAGE_LIMIT = 2**30  # bytes of a file in its place
# Bytes of the files that a page opens in 3D from disk, the newest first: the copies that this needs take 4/3
# of it.
TOTAL_FROM_DISK = 250_000_000


def write_page(folder: Path, entries: Iterable[Mapping[str, Any]]) -> str:
    """Write index.html and viewer/ for the entries of the folder's index; returns why not, "" on success.

    Files that this program did not write are never replaced. A page that would not change is not written.
    """
    try:
        check_ours(folder, PAGE, KIND)
        objects = objects_of(folder, entries)
        if not objects and not (folder / PAGE).exists():
            return ""
        from_disk = _write_scripts(folder, objects[-MAX_CARDS:])
        text = page(folder, objects, from_disk)
        if not (folder / PAGE).is_file() or (folder / PAGE).read_bytes() != text.encode():
            atomic_write_text(folder / PAGE, text)
    except OSError as error:
        return f"cannot write {short(folder / PAGE)}: {reason_of(error)}"
    except ValueError as error:
        return str(error)
    return ""


def check_ours(folder: Path, name: str, kind: str) -> None:
    """Raise ValueError if there is a file of this name that is not a page of this `kind`."""
    path = inside(folder, name)
    if not path.exists() and not path.is_symlink():
        return
    with open_regular(path, PAGE_LIMIT) as file:
        if not is_page_of(file.read(1024), kind):
            raise ValueError(
                f"{short(path)} is not a page of generate and stays as it is: rename it to get one"
            )


def _write_scripts(folder: Path, objects: Sequence[Generated]) -> set[str]:
    """Write what a page needs to open objects from disk; returns the names of the files that it can open."""
    files = [file for made in objects for file in made.in_3d]
    if not files:
        return set()
    check_ours(folder, "viewer/viewer.html", "viewer")
    write_viewer(folder)
    names: set[str] = set()
    total = 0
    for file in reversed(files):
        if opens(file) and file.size <= min(MAX_FROM_DISK, TOTAL_FROM_DISK - total):
            with suppress(ValueError):  # not a file that can be read
                if write_script(folder / file.name) is not None:
                    names.add(file.name)
                    total += file.size
    remove_scripts(folder, names)
    return names
