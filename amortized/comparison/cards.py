"""The prompts of a comparison, each with a row per run: its strip, scores, and differences to the first run.

The whole is a table for assistive technology. Browsers lay out and decode only the part that is in view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amortized.comparison.paired import LOWER_IS_BETTER, Comparison, score
from amortized.evaluation.results import LABELS
from amortized.pages import Picture, image, key, link, number, objects_button, text, video_button
from amortized.wording import count

MAX_CARDS = 2000  # prompts on the page; the differences and comparison.csv cover all
OBJECTS = "objects/"  # of all runs, with one viewer


@dataclass(frozen=True, kw_only=True)
class Media:
    """The files that show a prompt of a run, by their paths relative to the page."""

    picture: Picture | None = None
    object: str | None = None  # a GLB or splats in OBJECTS
    antialias: bool = True  # of splats
    turntable: str | None = None


Shown = Mapping[tuple[int | None, str], Media]  # by number of the run (None: the truth) and text


def controls(comparison: Comparison) -> str:
    """A form that filters the prompts and chooses what the column buttons sort by."""
    labels = [text(run.label, 60) for run in comparison.runs]
    options = [(f"{n} 0", f"{label} − {labels[0]}") for n, label in enumerate(labels) if n]
    options += [(str(n), f"the score of {label}") for n, label in enumerate(labels)]
    items = "".join(f'<option value="{value}">{words}</option>' for value, words in options)
    presence = ""
    if comparison.shared < len(comparison.texts):
        presence = (
            '<label>Prompts <select id="presence" autocomplete="off"><option value="">all</option>'
            '<option value="all">in all runs</option><option value="some">not in all runs</option>'
            "</select></label>"
        )
    return (
        '<form class="controls" id="controls"><input id="filter" type="search" autocomplete="off" '
        f'placeholder="Filter prompts" aria-label="Filter prompts by text">{presence}'
        f'<label>Columns sort by <select id="by" autocomplete="off">{items}</select></label>'
        '<output id="count" aria-live="polite"></output></form>'
    )


def cards(comparison: Comparison, media: Shown) -> str:
    """The table, in the order of `comparison.texts`."""
    shown = comparison.texts[:MAX_CARDS]
    titles = "".join(
        f'<div role="columnheader" aria-sort="none"><button type="button" data-metric="{column}">'
        f"{text(LABELS[name])}</button></div>"
        for column, name in enumerate(comparison.metrics)
    )
    body = "".join(_card(comparison, media, index, prompt) for index, prompt in enumerate(shown))
    left_out = ""
    if len(comparison.texts) > len(shown):
        left_out = (
            f'<p class="note">The first {len(shown):,} of {len(comparison.texts):,} prompts are shown; the '
            "differences above and comparison.csv cover all of them.</p>"
        )
    return (
        f'<div class="prompts" id="prompts" role="table" aria-label="Scores by prompt" '
        f'style="--metrics:{len(comparison.metrics)};--rows:{len(comparison.runs) + 1}">'
        '<div class="head" role="rowgroup">'
        '<div class="row" role="row"><div role="columnheader" aria-sort="ascending">'
        '<button type="button" data-metric="">Prompt</button></div>'
        f'<div role="columnheader" class="views">Views</div>{titles}</div></div>{body}</div>'
        '<p class="empty" id="empty" role="status" hidden>No prompt matches this filter.</p>'
        f"{left_out}"
    )


def _card(comparison: Comparison, media: Shown, index: int, prompt: str) -> str:
    scores = [[score(run.rows.get(prompt), name) for name in comparison.metrics] for run in comparison.runs]
    data = "|".join(",".join("" if value is None else f"{value:.6g}" for value in row) for row in scores)
    missing = sum(prompt not in run.rows for run in comparison.runs)
    tag = f' <span class="tag">not in {count(missing, "run")}</span>' if missing else ""
    name = text(prompt, 120)
    rows = "".join(
        _row(comparison, number, scores, prompt, media.get((number, prompt), Media()).picture)
        for number in range(len(comparison.runs))
    )
    if (truth := media.get((None, prompt), Media()).picture) is not None:
        rows += (
            '<div class="row" role="row"><div role="rowheader" class="run">true object</div>'
            f'<div role="cell" class="views">{_strip(truth, f"The true object for {prompt}")}</div></div>'
        )
    return (
        f'<div class="prompt" data-card role="rowgroup" aria-label="{name}" data-index="{index}" '
        f'data-scores="{data}" data-presence="{"some" if missing else "all"}">'
        f'<div role="row" class="title"><div role="rowheader"><h3><bdi>{text(prompt)}</bdi></h3>{tag}</div>'
        f"{_buttons(comparison, media, prompt)}</div>"
        f'<div role="row" class="opened"><div role="cell" data-stage></div></div>{rows}</div>'
    )


def _buttons(comparison: Comparison, media: Shown, prompt: str) -> str:
    """Buttons that open the objects of all runs in 3D, and their turntables, side by side."""
    labels = {run.label: media.get((number, prompt), Media()) for number, run in enumerate(comparison.runs)}
    objects = {one.object[len(OBJECTS) :]: label for label, one in labels.items() if one.object}
    classic = [one.object[len(OBJECTS) :] for one in labels.values() if one.object and not one.antialias]
    turntables = {one.turntable: label for label, one in labels.items() if one.turntable}
    buttons = objects_button(OBJECTS, objects, prompt, classic) if objects else ""
    buttons += video_button(turntables, prompt) if turntables else ""
    return f'<div role="cell" class="buttons">{buttons}</div>' if buttons else ""


def _row(
    comparison: Comparison,
    number: int,
    scores: list[list[float | None]],
    prompt: str,
    picture: Picture | None,
) -> str:
    run = comparison.runs[number]
    label = f'<div role="rowheader" class="run">{key(number)}<bdi>{text(run.label, 60)}</bdi></div>'
    if prompt not in run.rows:
        return f'<div class="row" role="row">{label}<div role="cell" class="gap">not evaluated</div></div>'
    words = f"Views of {prompt} by {run.label}, the front first"
    views = _strip(picture, words) if picture else '<span class="gap">no picture</span>'
    cells = "".join(
        f'<div role="cell" class="score" data-label="{text(LABELS[name])}">{number_and_difference}</div>'
        for name, number_and_difference in zip(
            comparison.metrics,
            map(_score, comparison.metrics, scores[number], scores[0] if number else [None] * len(scores[0])),
            strict=True,
        )
    )
    return f'<div class="row" role="row">{label}<div role="cell" class="views">{views}</div>{cells}</div>'


def _score(name: str, value: float | None, first: float | None) -> str:
    """A score, and its difference to the first run's; a minus sign as wide as the plus."""
    shown = number(value)
    if value is None or first is None:
        return shown
    change = value - first
    if signed(change) == "0.000":
        return f"{shown}<small>=</small>"
    style = "better" if (change > 0) != (name in LOWER_IS_BETTER) else "worse"
    return f'{shown}<small class="{style}">{signed(change)}</small>'


def signed(value: float) -> str:
    """A difference with its sign, as wide for minus as for plus; 0 has none."""
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 5e-4 else "0.000"


def _strip(picture: Picture, words: str) -> str:
    return f'<a href="{link(picture.path)}" tabindex="-1">{image(picture, words)}</a>'
