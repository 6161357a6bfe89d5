"""Pictures that a page shows: looked up without leaving their folder, and measured without being decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amortized.pages.markup import link, text
from amortized.untrusted import MiB, inside, open_regular

PICTURE_LIMIT = 64 * MiB
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
MAX_SIDE = 2**16  # px


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG file of a page."""

    path: str  # relative to the page
    width: int  # px
    height: int


def find_picture(folder: Path, path: str) -> Picture | None:
    """The picture at a path relative to `folder`; None for anything but a PNG file inside the folder."""
    try:
        with open_regular(inside(folder, path), PICTURE_LIMIT) as file:
            head = file.read(24)
    except (OSError, ValueError):
        return None
    width, height = (int.from_bytes(head[start : start + 4], "big") for start in (16, 20))
    if not head.startswith(PNG) or not 0 < width < MAX_SIDE or not 0 < height < MAX_SIDE:
        return None
    return Picture(path=path, width=width, height=height)


def image(picture: Picture, alt: str, *, lazy: bool = True) -> str:
    """An <img> element, with its size, so that the page does not move while pictures load."""
    loading = ' loading="lazy"' if lazy else ""
    return (
        f'<img src="{link(picture.path)}" width="{picture.width}" height="{picture.height}"{loading} '
        f'alt="{text(alt, 200)}">'
    )
