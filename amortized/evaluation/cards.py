"""The gallery of the report page: a card per prompt, and controls to filter and sort them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from amortized.evaluation.metrics import Interval
from amortized.evaluation.results import COMPARED, LABELS, SIDES, SOLID_OF_SPLATS, PromptRow, Results
from amortized.evaluation.scales import scale
from amortized.pages import link, number, objects_button, text
from amortized.pages.cards import (
    MAX_CARDS,
    card_controls,
    card_grid,
    choice,
    pixels,
    sides,
    stage_color,
    strip,
    video,
)
from amortized.pages.markup import one_line


def gallery(results: Results) -> str:
    """The cards, in the order of the prompts."""
    cards = "".join(
        _card(row, index, results.settings) for index, row in enumerate(results.prompts[:MAX_CARDS])
    )
    return card_grid(cards, style=_stage(results.settings)) + _notes(results)


def controls(results: Results) -> str:
    """A form that filters, sorts and pauses the cards; for one prompt nothing."""
    if len(results.prompts) == 1:
        return ""
    sortable = {name: LABELS[name] for name in COMPARED if name in results.metrics}
    choices = ""
    splits = dict.fromkeys(row.split for row in results.prompts)
    for name, label, groups in (("split", "Split", splits), ("kind", "Kind", results.by_kind)):
        if len(groups) > 1:
            choices += choice(name, label, {"": "All"} | {group: group for group in groups})
    choices += choice("sort", "Sort", {"index": "Corpus order"} | sortable, filters=False)
    return card_controls(choices, directions=("Low first", "High first"))


def _card(row: PromptRow, index: int, settings: Mapping[str, object]) -> str:
    values = {name: getattr(row, name) for name in COMPARED}
    data = "".join(
        f' data-{name.replace("_", "-")}="{value:.6g}"'
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    )
    tags = "".join(f"<span>{text(tag, 60)}</span>" for tag in (row.kind, row.split) if tag)
    if row.near_train is not None:
        tags += f'<span title="{text(row.near_train)}">near a trained prompt</span>'
    return (
        f'<article class="card" data-index="{index}" data-id="{text(row.id)}" '
        f'data-split="{text(row.split)}" data-kind="{text(row.kind or "")}"{data}>'
        f'<div class="main" data-stage>{_picture(row, settings)}<div class="text">'
        f'<h3><bdi>{text(row.text)}</bdi></h3><p class="tags">{tags}</p>'
        f"<dl>{_scores(row, values)}</dl>{_object(row)}</div></div>{_strips(row, settings)}</article>"
    )


def _object(row: PromptRow) -> str:
    """A button that shows the object in 3D, and a link to its file."""
    if not row.object:
        return ""
    folder, _, file = row.object.rpartition("/")
    button = objects_button(f"{folder}/", {file: ""}, row.text, () if row.antialias else (file,))
    kind = "splats" if file.endswith(".splat") else "GLB"
    return f'<p class="object">{button} <a href="{link(row.object)}" download>{kind}</a></p>'


def _scores(row: PromptRow, values: Mapping[str, float | None]) -> str:
    references = (("start", row.iou_start), ("best sphere", row.iou_best_sphere))
    marks = [(word, value) for word, value in references if value is not None]
    iou = row.iou if row.iou is not None else math.nan
    scores = "".join(
        f"<div><dt>{text(LABELS[name])}</dt><dd>{number(values[name])}{extra}</dd></div>"
        for name, extra in (
            ("recall_at_1", ""),
            ("clip_similarity", ""),
            ("iou", scale(Interval(mean=iou, low=0.0, high=iou, n=1), marks)),
            ("color_error", ""),
        )
        if values[name] is not None
    )
    if row.mark_sides is not None:
        chips = "".join(
            f'<b class="{"on" if shown else "off"}{" wrong" if shown and side != "front" else ""}" '
            f'title="{side}: the mark is {"" if shown else "not "}shown">{side}</b>'
            for side, shown in zip(SIDES, row.mark_sides, strict=True)
        )
        scores += f'<div class="sides"><dt>Mark on</dt><dd>{chips}</dd></div>'
    return scores


def _picture(row: PromptRow, settings: Mapping[str, object]) -> str:
    """The turntable at its own size, or without one the front view."""
    if row.turntable:
        size = pixels(settings.get("turntable_size"))
        label = f"Turntable of {one_line(row.text, 120)}"
        shown = video(row.turntable, label, poster=row.strip, size=sides(size, size))
    elif row.strip:
        size = pixels(settings.get("image_size"))
        shown = (
            f'<img src="{link(row.strip)}" loading="lazy" {sides(size, size)}'
            f'alt="The front of {text(row.text, 120)}">'
        )
    else:
        return ""
    return f'<div class="stage">{shown}</div>'


def _strips(row: PromptRow, settings: Mapping[str, object]) -> str:
    """The scored views, and the same views of the true object below them."""
    views, size = pixels(settings.get("views")), pixels(settings.get("image_size"))
    dimensions = sides(views * size if views and size else None, size)
    out = ""
    for path, label, words in (
        (row.strip, "result", "Scored views"),
        (row.truth_strip, "truth", "The same views of the true object"),
    ):
        if path:
            beside = f"<span>{label}</span>" if row.truth_strip else ""
            alt = f"{words} of {one_line(row.text, 120)}, the front first"
            out += strip(path, alt, title=words, size=dimensions, beside=beside)
    return f'<div class="strips">{out}</div>' if out else ""


def _stage(settings: Mapping[str, object]) -> str:
    """The size of the turntables, and the gray behind them, which continues around them."""
    size = pixels(settings.get("turntable_size" if settings.get("turntable_frames", 1) else "image_size"))
    return ";".join(filter(None, (f"--size:{size or 160}px", stage_color(settings.get("background")))))


def _notes(results: Results) -> str:
    notes = []
    if "iou_start" in results.metrics or "iou_best_sphere" in results.metrics:
        notes.append("Ticks on an IoU line: the untrained start and the best sphere.")
    if any(row.splats for row in results.prompts):
        notes.append(SOLID_OF_SPLATS)
    if len(results.prompts) > MAX_CARDS:
        notes.append(
            f"The first {MAX_CARDS:,} of {len(results.prompts):,} prompts are shown here; "
            "the scores below and results.csv cover all of them."
        )
    return "".join(f'<p class="note">{note}</p>' for note in notes)
