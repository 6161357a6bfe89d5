"""The card of an object: its picture and video, its files, how it was made, and a button for 3D."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from amortized.gallery.objects import File, Generated
from amortized.pages import SUFFIXES, Picture, find_picture, frame_address, link, objects_button, text
from amortized.pages.cards import pixels, sides, stage_color, strip, video
from amortized.pages.markup import one_line
from amortized.wording import count

MAX_IN_BROWSER = 100_000_000  # bytes of an object that a browser opens without trouble
UNITS = ("B", "kB", "MB", "GB", "TB")
LABELS = {"webp": "WebP", "obj": "OBJ, zipped", "splat": ".splat", "splat-ply": "PLY of splats"}
CUBE = (
    '<svg class="cube" viewBox="0 0 48 48" width="72" height="72" aria-hidden="true">'
    '<path d="M24 5 41 14.5v19L24 43 7 33.5v-19zM7 14.5 24 24l17-9.5M24 24v19"/></svg>'
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a card needs to know about its page."""

    folder: Path
    settings: Mapping[str, int]  # the number of the table with an object's settings, by its name
    from_disk: Collection[str]  # the files that open in 3D without a server


def card(made: Generated, index: int, context: Context) -> str:
    """The card of an object, the `index`-th of the page."""
    title = title_of(made)
    picture = picture_of(made, context.folder)
    heading = ' <span class="to">to</span> '.join(f"<bdi>{text(prompt)}</bdi>" for prompt in made.prompts)
    return (
        f'<article class="card" data-index="{index}" data-model="{text("; ".join(made.models))}">'
        f"{_stage(made, title, picture)}{_strip(made, title, picture)}"
        f'<div class="text"><h3>{heading}</h3>{_tags(made)}'
        f"{_files(made)}{_details(made, context)}</div></article>"
    )


def _tags(made: Generated) -> str:
    tags = "" if made.seed is None else f"<span>seed {made.seed}</span>"
    return f'<p class="tags">{tags}</p>'


def title_of(made: Generated) -> str:
    """The object in words, not escaped."""
    return " to ".join(one_line(prompt, 120) for prompt in made.prompts)


def picture_of(made: Generated, folder: Path) -> Picture | None:
    """The strip of an object, or the grid of a way."""
    file = made.files.get("png")
    return find_picture(folder, file.name) if file else None


def moves(made: Generated) -> bool:
    """Whether the card has a video or an animated picture."""
    return "mp4" in made.files or "webp" in made.files


def _stage(made: Generated, title: str, picture: Picture | None) -> str:
    """The moving picture, else the first view, else a sign; over it the button for 3D."""
    is_way = len(made.prompts) > 1
    seen = next((made.files[f] for f in ("mp4", "webp", "png") if f in made.files), None)
    size, rows = _frame(seen, picture)
    dimensions = sides(size, size * rows if size else None)
    style = "whole" if is_way and picture and not moves(made) else ""
    if "mp4" in made.files:
        poster = picture.path if picture and not is_way else None
        shown = video(made.files["mp4"].name, f"Video of {title}", poster=poster, size=dimensions)
    elif "webp" in made.files:
        shown = (
            f'<img src="{link(made.files["webp"].name)}" loading="lazy" data-animated {dimensions}'
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
        shown = CUBE + ("" if made.in_3d else '<p class="missing">No picture</p>')
        style = "bare"
    opened = [file for file in made.in_3d if opens(file)]
    labels = {file.name: "mesh" if file.format == "glb" else "splats" for file in opened}
    labels = labels if len(labels) > 1 else dict.fromkeys(labels, "")
    button = objects_button("", labels, title, classic_of(opened)) if opened else ""
    variables = [f"--size:{size or 160}px;--rows:{rows}"]
    variables += filter(None, [stage_color(seen.settings.get("background")) if seen else ""])
    return f'<div class="stage {style}" data-stage style="{";".join(variables)}">{shown}{button}</div>'


def opens(file: File) -> bool:
    """Whether a browser can show a file in 3D: from disk if it has a script, else through a server."""
    return file.size <= MAX_IN_BROWSER and file.name.endswith(SUFFIXES)


def classic_of(files: Collection[File]) -> list[str]:
    """The names of the splats that were trained without antialiasing."""
    return [file.name for file in files if file.settings.get("antialias") is False]


def _frame(seen: File | None, picture: Picture | None) -> tuple[int | None, int]:
    """The side of a view in pixels, and the number of rows of a frame."""
    shown = seen.settings.get("show") if seen else None
    rows = len(shown) if isinstance(shown, list) and 1 <= len(shown) <= 4 else 1
    size = pixels(seen.settings.get("size")) if seen else None
    return size or (picture.height // rows if picture else None), rows


def _strip(made: Generated, title: str, picture: Picture | None) -> str:
    """All views of the object, or the steps of the way, if the stage does not show them all."""
    if picture is None or (len(made.prompts) > 1 and not moves(made)):
        return ""
    views = made.files["png"].settings.get("views")
    if type(views) is int and views <= 1 and not moves(made):
        return ""
    words = "Steps" if len(made.prompts) > 1 else count(views, "view") if type(views) is int else "Views"
    shown = strip(
        picture.path,
        f"{words} of {title}",
        title=f"{words}: open the picture",
        size=sides(picture.width, picture.height),
    )
    return f'<div class="strips">{shown}</div>'


def _files(made: Generated) -> str:
    items = "".join(
        f'<li><a href="{link(file.name)}" title="{text(file.name)}"{_download(file)}>'
        f"{text(LABELS.get(file.format, file.format.upper()), 20)}</a> "
        f"<small>{size_text(file.size)}</small></li>"
        for file in made.files.values()
    )
    return f'<ul class="files" aria-label="Files">{items}</ul>'


def _download(file: File) -> str:
    return "" if file.format in ("png", "mp4", "webp") else " download"


def _details(made: Generated, context: Context) -> str:
    rows = [(f"Model{'s' if len(made.models) > 1 else ''}", "<br>".join(map(text, made.models)) or "–")]
    if number := context.settings.get(made.name):
        rows.append(("Settings", f'<a href="#settings-{number}">Settings {number}</a>'))
    if made.licenses:
        rows.append(("License", text("; ".join(made.licenses))))
    if made.report:
        rows.append(("Asset report", f'<a href="{link(made.report)}">checks and times</a>'))
    if made.in_3d:
        rows.append(("In 3D", "<br>".join(_in_3d(file, context) for file in made.in_3d)))
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<details><summary>Details</summary><dl>{body}</dl></details>"


def _in_3d(file: File, context: Context) -> str:
    """A link to the object in a window to itself, and when it opens."""
    kind = text(LABELS.get(file.format, file.format.upper()))
    if not opens(file):
        return f"{kind}: too large for a browser"
    address = escape(frame_address("", {file.name: ""}, classic_of([file])))
    window = f'{kind}: <a href="{address}" target="_blank">full window</a>'
    return window if file.name in context.from_disk else f"{window}, with <code>amortized view</code> only"


def settings_key(made: Generated) -> str:
    """Equal for objects whose files were made by the same models with the same settings."""
    return repr(
        sorted(
            (format, file.model, sorted(file.settings.items(), key=str))
            for format, file in made.files.items()
        )
    )


def size_text(size: int) -> str:
    """A number of bytes in words: "812 B", "97 kB", "1.2 MB", "34 MB"."""
    power = 0
    while size >= 999.5 * 1000**power and power < len(UNITS) - 1:
        power += 1
    amount = size / 1000**power
    return f"{amount:.{int(power > 1 and amount < 9.95)}f} {UNITS[power]}"
