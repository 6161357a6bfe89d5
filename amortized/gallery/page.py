"""The page of a folder of generated objects as one HTML document, which opens from disk, offline.

Prompts are untrusted text: see `amortized.pages.markup`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from amortized.gallery.cards import Context, card, moves, opens, settings_key, size_text
from amortized.gallery.objects import File, Generated
from amortized.pages import MAX_FROM_DISK, asset, document, navigation, section, text
from amortized.pages.cards import MAX_CARDS, card_controls, card_grid, choice
from amortized.wording import count

KIND = "gallery"
SCRIPT = asset("pages/cards.js") + asset("pages/viewing.js")
FIRST = 48  # cards shown before a click on "Show all"
MAX_MODELS = 50  # to choose from
MAX_TABLES = 100  # of settings
UNITS = {"deg": "degrees", "mm": "mm", "m": "m"}  # by the last part of a setting's name


def page(folder: Path, objects: Sequence[Generated], from_disk: Collection[str]) -> str:
    """The page of all objects of a folder, of which it shows the last `MAX_CARDS`.

    `from_disk` are the files that open in 3D without a server.
    """
    shown = objects[-MAX_CARDS:]
    groups: dict[str, list[Generated]] = {}
    for made in shown:
        groups.setdefault(settings_key(made), []).append(made)
    tables = list(groups.values())[:MAX_TABLES]
    numbers = {made.name: number for number, group in enumerate(tables, 1) for made in group}
    context = Context(folder=folder, settings=numbers, from_disk=from_disk)
    cards = "".join(card(made, index, context) for index, made in enumerate(shown))
    grid = card_grid(cards, first=FIRST) + _notes(objects, shown, from_disk)
    name = text(folder.resolve().name or "Objects", 80)
    body = f"""<header>
<p class="overline">Generated objects</p>
<h1><bdi>{name}</bdi></h1>
<p class="lead">{_lead(objects)}</p>
{navigation({"objects": "Objects", "settings": "Settings"})}
</header>
<main>
{section("objects", "Objects", grid, beside=_controls(shown))}
{section("settings", "Settings", _settings(tables, len(groups)))}
</main>"""
    return document(
        title=f"{name} · {count(len(objects), 'object')}",
        body=body,
        style=asset("pages/cards.css") + asset("gallery/gallery.css"),
        script=SCRIPT,
        kind=KIND,
        frames=True,
    )


def _lead(objects: Sequence[Generated]) -> str:
    files = [file for made in objects for file in made.files.values()]
    prompts = len({made.prompts for made in objects})
    parts = [f"<b>{count(len(objects), 'object')}</b>"]
    parts += [f"of {count(prompts, 'prompt')}"] if prompts != len(objects) else []
    parts += [f"{count(len(files), 'file')}, {size_text(sum(file.size for file in files))}"]
    models = list(dict.fromkeys(model for made in objects for model in made.models))
    if models:
        parts.append(f"model {text(models[0], 80)}" if len(models) == 1 else f"{len(models):,} models")
    return " · ".join(parts)


def _controls(shown: Sequence[Generated]) -> str:
    """A form that filters, orders and pauses the cards; for one object nothing."""
    if len(shown) < 2:
        return ""
    models = list(dict.fromkeys("; ".join(made.models) for made in shown))
    choices = ""
    if 1 < len(models) <= MAX_MODELS:
        choices = choice("model", "Model", {"": "All"} | {model: model for model in models if model})
    return card_controls(
        choices,
        directions=("Oldest first", "Newest first"),
        moving=any(map(moves, shown)),
    )


def _notes(objects: Sequence[Generated], shown: Sequence[Generated], from_disk: Collection[str]) -> str:
    notes = []
    if len(objects) > len(shown):
        notes.append(
            f"The last {len(shown):,} of {len(objects):,} objects are shown here; index.json lists all."
        )
    files = [file for made in shown for file in made.in_3d]
    if any(opens(file) and file.name not in from_disk for file in files):
        notes.append(
            f"From disk, browsers show {len(from_disk):,} of {count(len(files), 'file')} in 3D: the newest "
            f"ones, of at most {size_text(MAX_FROM_DISK)} each. <code>amortized view FOLDER</code> shows the "
            "others too."
        )
    if bare := sum("png" not in made.files and not moves(made) for made in shown):
        notes.append(
            f"{count(bare, 'object')} without a picture: the same command with <code>--format png</code> "
            "adds it."
        )
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def _settings(groups: Sequence[Sequence[Generated]], total: int) -> str:
    """A table for each group of objects that were made in the same way: a column per format."""
    tables = "".join(_table(number, group) for number, group in enumerate(groups, 1))
    shown = f"Only {len(groups)} of {total:,} settings are shown: " if total > len(groups) else ""
    return f'{tables}<p class="note">{shown}<a href="index.json">index.json</a> has them for each file.</p>'


def _table(number: int, group: Sequence[Generated]) -> str:
    files = list(group[0].files.values())
    keys = dict.fromkeys(key for file in files for key in file.settings)
    head = "".join(f'<th scope="col">{text(file.format, 20)}</th>' for file in files)
    rows = [("model", [file.model or "–" for file in files])]
    rows += [(_name(key), [_value(file, key) for file in files]) for key in keys]
    body = "".join(f'<tr><th scope="row">{text(name, 60)}</th>{_cells(values)}</tr>' for name, values in rows)
    return (
        f'<h3 class="made" id="settings-{number}">Settings {number} '
        f"<small>{count(len(group), 'object')}</small></h3>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Settings {number}"><table><thead><tr>'
        f'<th scope="col">Setting</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _name(key: str) -> str:
    """A setting's name in words: "height_mm" is "height (mm)"."""
    name, _, unit = key.rpartition("_")
    return f"{name} ({UNITS[unit]})" if unit in UNITS else key.replace("_", " ")


def _cells(values: Sequence[str]) -> str:
    """One cell for neighbors with equal values."""
    cells, start = "", 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            span = f' colspan="{end - start}"' if end - start > 1 else ""
            cells += f"<td{span}>{text(values[start], 80)}</td>"
            start = end
    return cells


def _value(file: File, key: str) -> str:
    """A setting in words; "" for a format without it."""
    value = file.settings.get(key, "")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or (value == "" and key in file.settings):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
