"""The gallery of the report page: a card per prompt, and controls to filter and sort them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from amortized.evaluation.metrics import Interval
from amortized.evaluation.results import COMPARED, LABELS, SIDES, PromptRow, Results
from amortized.evaluation.scales import scale
from amortized.pages import link, number, text, view_button

# More cards make a page that browsers cannot handle; results.csv and the tables still cover every prompt.
MAX_CARDS = 2000
FIRST_CARDS = 24  # shown before a click on "Show all", so that the scores are not far below


def gallery(results: Results) -> str:
    """The cards, in the order of the prompts."""
    cards = "".join(
        _card(row, index, results.settings) for index, row in enumerate(results.prompts[:MAX_CARDS])
    )
    return (
        f'<div class="gallery" id="gallery"{_stage(results.settings)}>{cards}</div>'
        '<p class="empty" id="empty" role="status" hidden>No prompt matches this filter.</p>'
        f'<p class="more"><button id="more" type="button" data-first="{FIRST_CARDS}" hidden>Show all'
        "</button></p>"
        f"{_notes(results)}"
    )


def controls(results: Results) -> str:
    """A form that filters, sorts and pauses the cards; for one prompt nothing."""
    if len(results.prompts) == 1:
        return ""

    def select(name: str, label: str, options: Mapping[str, str]) -> str:
        items = "".join(f'<option value="{text(k)}">{text(v, 60)}</option>' for k, v in options.items())
        return f'<label>{label} <select id="{name}" autocomplete="off">{items}</select></label>'

    sortable = {name: LABELS[name] for name in COMPARED if name in results.metrics}
    selects = ""
    splits = dict.fromkeys(row.split for row in results.prompts)
    for name, label, groups in (("split", "Split", splits), ("kind", "Kind", results.by_kind)):
        if len(groups) > 1:
            selects += select(name, label, {"": "All"} | {group: group for group in groups})
    return (
        '<form class="controls" id="controls"><input id="filter" type="search" autocomplete="off" '
        f'placeholder="Filter prompts" aria-label="Filter prompts by text">{selects}'
        f"{select('sort', 'Sort', {'index': 'Corpus order'} | sortable)}"
        '<button id="direction" type="button" title="Reverse the order">Low first</button>'
        '<button id="pause" type="button" aria-pressed="false">Pause</button>'
        '<output id="count" aria-live="polite"></output></form>'
    )


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
        f'<div class="main" data-stage>{_picture(row, index, settings)}<div class="text">'
        f'<h3><bdi>{text(row.text)}</bdi></h3><p class="tags">{tags}</p>'
        f"<dl>{_scores(row, values)}</dl>{_object(row)}</div></div>{_strips(row, settings)}</article>"
    )


def _object(row: PromptRow) -> str:
    """A button that shows the object in 3D, and a link to its file."""
    if not row.object:
        return ""
    folder, _, file = row.object.rpartition("/")
    button = view_button(f"{folder}/", file.removesuffix(".glb"), row.text)
    return f'<p class="object">{button} <a href="{link(row.object)}" download>GLB</a></p>'


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


def _picture(row: PromptRow, index: int, settings: Mapping[str, object]) -> str:
    """The turntable at its own size, or without one the front view."""
    name = text(row.text, 120)
    if row.turntable:
        size = _pixels(settings.get("turntable_size"))
        poster = f' poster="{link(row.strip)}"' if row.strip else ""
        start = "autoplay" if index < FIRST_CARDS else 'preload="none"'
        return (
            f'<div class="stage"><video src="{link(row.turntable)}"{poster} {start} loop muted playsinline '
            f'{_sides(size, size)}aria-label="Turntable of {name}"></video></div>'
        )
    if row.strip:
        size = _pixels(settings.get("image_size"))
        return (
            f'<div class="stage"><img src="{link(row.strip)}" loading="lazy" {_sides(size, size)}'
            f'alt="The front of {name}"></div>'
        )
    return ""


def _strips(row: PromptRow, settings: Mapping[str, object]) -> str:
    """The scored views, and the same views of the true object below them."""
    views, size = _pixels(settings.get("views")), _pixels(settings.get("image_size"))
    dimensions = _sides(views * size if views and size else None, size)
    out = ""
    for path, label, words in (
        (row.strip, "result", "Scored views"),
        (row.truth_strip, "truth", "The same views of the true object"),
    ):
        if path:
            shown = f"<span>{label}</span>" if row.truth_strip else ""
            out += (
                f'<a class="strip" href="{link(path)}" title="{words}">{shown}<img src="{link(path)}" '
                f'loading="lazy" {dimensions}alt="{words} of {text(row.text, 120)}, the front first"></a>'
            )
    return f'<div class="strips">{out}</div>' if out else ""


def _pixels(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value < 100_000 else None


def _sides(width: int | None, height: int | None) -> str:
    """Size attributes, so that the page does not move while pictures load and shows them at their size."""
    return f'width="{width}" height="{height}" ' if width and height else ""


def _stage(settings: Mapping[str, object]) -> str:
    """The size of the turntables, and the gray behind them, which continues around them."""
    size = _pixels(settings.get("turntable_size" if settings.get("turntable_frames", 1) else "image_size"))
    level = settings.get("background")
    style = f"--size:{size or 160}px"
    if isinstance(level, int | float) and 0 <= level <= 1:
        style += f";--stage:rgb({', '.join([str(round(255 * level))] * 3)})"
    return f' style="{style}"'


def _notes(results: Results) -> str:
    notes = []
    if "iou_start" in results.metrics or "iou_best_sphere" in results.metrics:
        notes.append("Ticks on an IoU line: the untrained start and the best sphere.")
    if any(row.splats for row in results.prompts):
        notes.append(
            "Splats have no surface: for IoU, color error and the front mark, a point is inside if the sum "
            "of opacity × exp(−d²/2) over all splats exceeds 0.5 (d: its Mahalanobis distance from each)."
        )
    if len(results.prompts) > MAX_CARDS:
        notes.append(
            f"The first {MAX_CARDS:,} of {len(results.prompts):,} prompts are shown here; "
            "the scores below and results.csv cover all of them."
        )
    return "".join(f'<p class="note">{note}</p>' for note in notes)
