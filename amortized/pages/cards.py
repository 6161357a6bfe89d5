"""A gallery of cards, each with a heading `<h3>`, and the controls above it.

`pages/cards.js` filters, sorts and pauses them, and `pages/cards.css` has their style. A card is an element
with `data-index`, its place in the page, and with a `data-` attribute for each choice and number to sort by.
"""

from __future__ import annotations

from collections.abc import Mapping

from amortized.pages.history import finite
from amortized.pages.markup import link, text

# More cards make a page that browsers cannot handle.
MAX_CARDS = 2000
FIRST_CARDS = 24  # shown before a click on "Show all", so that the sections below are not far


def card_grid(cards: str, *, first: int = FIRST_CARDS, style: str = "") -> str:
    """The cards, of which the `first` are shown. `style`: of the gallery, CSS without untrusted values."""
    styled = f' style="{style}"' if style else ""
    return (
        f'<div class="gallery" id="gallery"{styled}>{cards}</div>'
        '<p class="empty" id="empty" role="status" hidden>No prompt matches this filter.</p>'
        f'<p class="more"><button id="more" type="button" data-first="{first}" hidden>Show all'
        "</button></p>"
    )


def card_controls(choices: str, *, directions: tuple[str, str], moving: bool = True) -> str:
    """A form that filters, sorts and pauses cards.

    Args:
        choices: see `choice`, and a `choice` with the key "sort".
        directions: the words for ascending and descending order.
        moving: some cards have a video or an animated picture.
    """
    up, down = directions
    pause = '<button id="pause" type="button" aria-pressed="false">Pause</button>' if moving else ""
    return (
        '<form class="controls" id="controls"><input id="filter" type="search" autocomplete="off" '
        f'placeholder="Filter prompts" aria-label="Filter prompts by text">{choices}'
        f'<button id="direction" type="button" title="Reverse the order" data-up="{up}" data-down="{down}">'
        f'{up}</button>{pause}<output id="count" aria-live="polite"></output></form>'
    )


def choice(key: str, label: str, options: Mapping[str, str], *, filters: bool = True) -> str:
    """A choice among values of the cards' attribute `data-KEY`, value to label; "" stands for all."""
    items = "".join(f'<option value="{text(k)}">{text(v, 60)}</option>' for k, v in options.items())
    kind = " data-choice" if filters else ""
    return f'<label>{label} <select id="{key}"{kind} autocomplete="off">{items}</select></label>'


def video(path: str, label: str, *, poster: str | None = None, size: str = "") -> str:
    """A video that plays while it is in the window. `size`: see `sides`; `poster`: a picture's path."""
    still = f' data-poster="{link(poster)}"' if poster else ""
    return (
        f'<video data-src="{link(path)}"{still} autoplay loop muted playsinline {size}'
        f'aria-label="{text(label, 200)}"></video>'
    )


def strip(path: str, label: str, *, title: str, size: str = "", beside: str = "") -> str:
    """A picture of several views that leads to its file. `beside`: HTML left of it."""
    return (
        f'<a class="strip" href="{link(path)}" title="{title}">{beside}<img src="{link(path)}" '
        f'loading="lazy" {size}alt="{text(label, 200)}"></a>'
    )


def sides(width: int | None, height: int | None) -> str:
    """Size attributes, so that the page does not move while pictures load and shows them at their size."""
    return f'width="{width}" height="{height}" ' if width and height else ""


def pixels(value: object) -> int | None:
    """A number of pixels in untrusted settings; None for anything else."""
    return value if type(value) is int and 0 < value < 100_000 else None


def stage_color(background: object) -> str:
    """The CSS that continues a picture's background around it: an untrusted gray 0..1 or [r, g, b]."""
    channels = background if isinstance(background, list | tuple) else [background] * 3
    levels = [level for level in map(finite, channels) if level is not None and 0 <= level <= 1]
    if not len(levels) == len(channels) == 3:
        return ""
    return f"--stage:rgb({', '.join(str(round(255 * level)) for level in levels)})"
