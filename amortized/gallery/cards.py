"""The card of an object: its picture and video, its files, how it was made, and a button for 3D."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from amortized.gallery.objects import File, Generated
from amortized.pages import Picture, find_picture, link, text, view_button
from amortized.pages.cards import pixels, sides, stage_color, strip, video
from amortized.pages.markup import one_line
from amortized.wording import count

MAX_IN_BROWSER = 100_000_000  # bytes of a GLB that a browser opens without trouble
LABELS = {"webp": "WebP", "obj": "OBJ, zipped"}
CUBE = (
    '<svg class="cube" viewBox="0 0 48 48" width="72" height="72" aria-hidden="true">'
    '<path d="M24 5 41 14.5v19L24 43 7 33.5v-19zM7 14.5 24 24l17-9.5M24 24v19"/></svg>'
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a card needs to know about its page."""

    folder: Path
    settings: Mapping[object, int]  # number of the settings of each key, see `settings_key`
    from_disk: Collection[str]  # the GLBs that open in 3D without a server


def card(object: Generated, index: int, context: Context) -> str:
    """The card of an object, the `index`-th of the page."""
    title = title_of(object)
    picture = picture_of(object, context.folder)
    heading = ' <span class="to">to</span> '.join(f"<bdi>{text(prompt)}</bdi>" for prompt in object.prompts)
    return (
        f'<article class="card" data-index="{index}" data-model="{text("; ".join(object.models))}">'
        f"{_stage(object, title, picture)}{_strip(object, title, picture)}"
        f'<div class="text"><h3>{heading}</h3>{_tags(object)}'
        f"{_files(object)}{_details(object, context)}</div></article>"
    )


def _tags(object: Generated) -> str:
    tags = "" if object.seed is None else f"<span>seed {object.seed}</span>"
    return f'<p class="tags">{tags}</p>'


def title_of(object: Generated) -> str:
    """The object in words, not escaped."""
    return " to ".join(one_line(prompt, 120) for prompt in object.prompts)


def picture_of(object: Generated, folder: Path) -> Picture | None:
    """The strip of an object, or the grid of a way."""
    file = object.files.get("png")
    return find_picture(folder, file.name) if file else None


def moves(object: Generated) -> bool:
    """Whether the card has a video or an animated picture."""
    return "mp4" in object.files or "webp" in object.files


def _stage(object: Generated, title: str, picture: Picture | None) -> str:
    """The moving picture, else the first view, else a sign; over it the button for 3D."""
    is_way = len(object.prompts) > 1
    glb = object.files.get("glb")
    seen = next((object.files[f] for f in ("mp4", "webp", "png") if f in object.files), None)
    size, rows = _frame(seen, picture)
    dimensions = sides(size, size * rows if size else None)
    style = "whole" if is_way and picture and not moves(object) else ""
    if "mp4" in object.files:
        poster = picture.path if picture and not is_way else None
        shown = video(object.files["mp4"].name, f"Video of {title}", poster=poster, size=dimensions)
    elif "webp" in object.files:
        shown = (
            f'<img src="{link(object.files["webp"].name)}" loading="lazy" data-animated {dimensions}'
            f'alt="{text(f"Animation of {title}", 200)}">'
        )
    elif picture:
        words = "The way from " if is_way else "The first view of "
        shown = (
            f'<img src="{link(picture.path)}" loading="lazy" '
            f"{sides(picture.width, picture.height) if is_way else dimensions}"
            f'alt="{text(words + title, 200)}">'
        )
    else:
        shown = CUBE + ("" if glb else '<p class="missing">No picture</p>')
        style = "bare"
    button = view_button("", glb.name.removesuffix(".glb"), title) if glb and opens(glb) else ""
    variables = [f"--size:{size or 160}px;--rows:{rows}"]
    variables += filter(None, [stage_color(seen.settings.get("background")) if seen else ""])
    return f'<div class="stage {style}" data-stage style="{";".join(variables)}">{shown}{button}</div>'


def opens(glb: File) -> bool:
    """Whether a browser can open a GLB: from disk if it has a script, else through a server."""
    return glb.size <= MAX_IN_BROWSER and glb.name.endswith(".glb")


def _frame(seen: File | None, picture: Picture | None) -> tuple[int | None, int]:
    """The side of a view in pixels, and the number of rows of a frame."""
    shown = seen.settings.get("show") if seen else None
    rows = len(shown) if isinstance(shown, list) and 1 <= len(shown) <= 4 else 1
    size = pixels(seen.settings.get("size")) if seen else None
    return size or (picture.height // rows if picture else None), rows


def _strip(object: Generated, title: str, picture: Picture | None) -> str:
    """All views of the object, or the steps of the way, if the stage does not show them all."""
    if picture is None or (len(object.prompts) > 1 and not moves(object)):
        return ""
    views = object.files["png"].settings.get("views")
    if type(views) is int and views <= 1 and not moves(object):
        return ""
    words = "Steps" if len(object.prompts) > 1 else count(views, "view") if type(views) is int else "Views"
    shown = strip(
        picture.path,
        f"{words} of {title}",
        title=f"{words}: open the picture",
        size=sides(picture.width, picture.height),
    )
    return f'<div class="strips">{shown}</div>'


def _files(object: Generated) -> str:
    items = "".join(
        f'<li><a href="{link(file.name)}" title="{text(file.name)}"{_download(file)}>'
        f"{text(LABELS.get(file.format, file.format.upper()), 20)}</a> <small>{size_text(file.size)}</small></li>"
        for file in object.files.values()
    )
    return f'<ul class="files" aria-label="Files">{items}</ul>'


def _download(file: File) -> str:
    return "" if file.format in ("png", "mp4", "webp") else " download"


def _details(object: Generated, context: Context) -> str:
    rows = [(f"Model{'s' if len(object.models) > 1 else ''}", "<br>".join(map(text, object.models)) or "–")]
    number = context.settings[settings_key(object)]
    rows.append(("Settings", f'<a href="#settings-{number}">Settings {number}</a>'))
    if object.licenses:
        rows.append(("License", text("; ".join(object.licenses))))
    if object.report:
        rows.append(("Asset report", f'<a href="{link(object.report)}">{text(object.report)}</a>'))
    if glb := object.files.get("glb"):
        rows.append(("In 3D", _in_3d(glb, context)))
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<details><summary>Details</summary><dl>{body}</dl></details>"


def _in_3d(glb: File, context: Context) -> str:
    """A link to the object in a window to itself, and when it opens."""
    if not opens(glb):
        return "too large for a browser: download the GLB"
    name = glb.name.removesuffix(".glb")
    window = f'<a href="viewer/viewer.html#{link(name)}" target="_blank">full window</a>'
    return window if glb.name in context.from_disk else f"{window}, with <code>amortized view</code> only"


def settings_key(object: Generated) -> str:
    """Equal for objects whose files were made by the same models with the same settings."""
    made = {
        format: (file.model, sorted(file.settings.items(), key=str)) for format, file in object.files.items()
    }
    return repr(sorted(made.items()))


def size_text(size: int) -> str:
    """A number of bytes in words: "812 B", "97 kB", "1.2 MB", "34 MB"."""
    amount, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount /= 1000
    return f"{amount:.1f} {unit}" if amount < 9.95 and unit not in ("B", "kB") else f"{amount:.0f} {unit}"
