"""Write the results of an evaluation: results.json, results.csv and a page that opens from disk, offline.

Prompts are untrusted text. On the page they pass through `html.escape` and appear as element text or
attribute values only, never inside a script; the page's content security policy admits its one script by
digest. In the table they cannot start a spreadsheet formula.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from amortized.evaluation.metrics import Interval, chance_recall
from amortized.evaluation.page import SCRIPT, STYLE
from amortized.evaluation.results import METRICS, PromptRow, Results, row_values
from amortized.files import atomic_write_text

# More cards make a page that browsers cannot handle; results.csv and the tables still cover every prompt.
MAX_CARDS = 2000

LABELS = {
    "clip_similarity": "CLIP similarity",
    "recall_at_1": "R@1",
    "recall_of_truth": "R@1 of true object",
    "iou": "IoU",
    "iou_any_azimuth": "IoU, any azimuth",
    "iou_start": "IoU of the start",
    "iou_best_sphere": "IoU of best sphere",
    "color_error": "Color error",
    "front_shown": "Front mark",
    "janus": "Janus",
}
HEADLINES = ("recall_at_1", "iou", "color_error", "clip_similarity", "front_shown", "janus")
SORTABLE = (
    "recall_at_1",
    "clip_similarity",
    "iou",
    "iou_any_azimuth",
    "color_error",
    "front_shown",
    "janus",
)
SIDES = ("front", "left", "back", "right")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_results(folder: str | Path, results: Results) -> None:
    """Write results.json, results.csv and, last, index.html, each atomically."""
    folder = Path(folder)
    text = json.dumps(results.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(folder / "results.json", text + "\n")
    atomic_write_text(folder / "results.csv", csv_table(results))
    atomic_write_text(folder / "index.html", page(results))


def csv_table(results: Results) -> str:
    """The results as CSV, one line per prompt. An empty cell is a score that does not apply.

    Text that a spreadsheet would run as a formula gets an apostrophe in front, as OWASP advises for CSV
    injection; results.json has the exact text.
    """
    table = io.StringIO(newline="")
    rows = [row_values(row) for row in results.prompts]
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        row["mark_sides"] = " ".join(_sides(row["mark_sides"] or ()))
        writer.writerow({name: _inert(value) for name, value in row.items()})
    return table.getvalue()


def _inert(value: object) -> object:
    """The value of a cell, with an apostrophe before text that starts like a formula; numbers stay."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def page(results: Results) -> str:
    """The report as one HTML document, with style and script inline."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src 'self' file: data:; media-src 'self' file:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    title = escape(results.name or "Evaluation")
    cards = "".join(_card(row, index) for index, row in enumerate(results.prompts[:MAX_CARDS]))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="overline">Evaluation</p>
<h1>{title}</h1>
<p class="lead">{_lead(results)}</p>
</header>
<main>
<section class="tiles" aria-label="Headline metrics">{_tiles(results)}</section>
<section aria-labelledby="groups-title">
<h2 id="groups-title">By group</h2>
{_groups(results)}
</section>
<section aria-labelledby="gallery-title">
<div class="bar"><h2 id="gallery-title">Gallery</h2>{_controls(results)}</div>
{_gallery_notes(results)}<div class="gallery" id="gallery">{cards}</div>
<p class="empty" id="empty" hidden>No prompt matches this filter.</p>
</section>
<details><summary>Settings</summary><dl>{_settings(results.settings)}</dl></details>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _lead(results: Results) -> str:
    prompts, kinds = len(results.prompts), len(results.by_kind)
    views = results.settings.get("views")
    parts = [f"{prompts:,} prompt{'s' * (prompts != 1)}"]
    parts += [f"{kinds} kind{'s' * (kinds != 1)}"] if kinds else []
    parts += [f"{escape(str(views))} views each"] if views else []
    if (near := results.nearness)["held_out"]:
        parts.append(f"{near['near_train']:,} of {near['held_out']:,} held-out prompts near a trained one")
    parts += [f"a gallery of {results.gallery:,} texts", "95&#8201;% bootstrap intervals over prompts"]
    return " · ".join(parts)


def _tiles(results: Results) -> str:
    metrics = results.metrics
    tiles = []
    for name in HEADLINES:
        if name not in metrics:
            continue
        marks: list[tuple[str, float]] = []
        note = ""
        match name:
            case "recall_at_1":
                chance = chance_recall(results.gallery)
                marks = [("chance", chance)]
                note = f"chance {_number(chance, 4)}: 1 of {results.gallery:,} texts"
                if "recall_of_truth" in metrics:
                    truth = metrics["recall_of_truth"].mean
                    marks.append(("truth", truth))
                    note += f" · true objects {_number(truth)}"
            case "iou":
                marks = [
                    (word, metrics[key].mean)
                    for word, key in (("start", "iou_start"), ("best sphere", "iou_best_sphere"))
                    if key in metrics
                ]
                note = " · ".join(f"{word} {_number(value)}" for word, value in marks)
            case "color_error":
                note = "mean absolute difference; lower is better"
            case "clip_similarity":
                note = "mean cosine between image and text"
            case "front_shown":
                note = f"front shows the mark, over {metrics[name].n:,} marked prompts"
            case "janus":
                note = "another side shows it too; lower is better"
        tiles.append(_tile(LABELS[name], metrics[name], marks, note))
    return "".join(tiles)


def _tile(label: str, interval: Interval, marks: list[tuple[str, float]], note: str) -> str:
    return (
        f'<article class="tile"><h3>{escape(label)}</h3>'
        f'<p class="value">{_number(interval.mean)}</p>'
        f'<p class="range">{_interval(interval)}</p>{_scale(interval, marks)}'
        f'<p class="note">{escape(note)}</p></article>'
    )


def _scale(interval: Interval, marks: list[tuple[str, float]]) -> str:
    """A line from 0 to 1 with the interval as a band, the mean as a dot and reference values as ticks."""
    if not math.isfinite(interval.mean):
        return ""
    ticks = "".join(
        f'<i class="tick" style="left:{_percent(value)}" title="{escape(word)} {_number(value, 4)}"></i>'
        for word, value in marks
        if math.isfinite(value)
    )
    low, high = _clip(interval.low), _clip(interval.high)
    return (
        '<div class="scale" aria-hidden="true">'
        f'<i class="band" style="left:{_percent(low)};width:{_percent(high - low)}"></i>{ticks}'
        f'<i class="dot" style="left:{_percent(interval.mean)}"></i></div>'
    )


def _groups(results: Results) -> str:
    """One table: all prompts, then the splits if there are several, then the kinds."""
    names = [name for name in METRICS if name in results.metrics]
    head = "".join(f'<th scope="col">{escape(LABELS[name])}</th>' for name in names)
    groups = [("All prompts", results.metrics, len(results.prompts), "all")]
    for grouping, style in ((results.by_split, "split"), (results.by_kind, "kind")):
        if style == "kind" or len(grouping) > 1:
            groups += [
                (group, means, max(i.n for i in means.values()), style) for group, means in grouping.items()
            ]
    body = ""
    for group, means, count, style in groups:
        cells = "".join(
            f"<td>{_number(means[name].mean)}<small>{_interval(means[name])}</small></td>"
            if name in means
            else "<td>–</td>"
            for name in names
        )
        body += f'<tr class="{style}"><th scope="row">{escape(group)}</th><td>{count:,}</td>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">Group</th>'
        f'<th scope="col">Prompts</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _controls(results: Results) -> str:
    def select(name: str, label: str, options: Mapping[str, str]) -> str:
        items = "".join(f'<option value="{escape(k)}">{escape(v)}</option>' for k, v in options.items())
        return f'<label>{label} <select id="{name}" autocomplete="off">{items}</select></label>'

    sortable = {name: LABELS[name] for name in SORTABLE if name in results.metrics}
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
        '<output id="count"></output></form>'
    )


def _card(row: PromptRow, index: int) -> str:
    values = {name: getattr(row, name) for name in SORTABLE}
    data = "".join(
        f' data-{name.replace("_", "-")}="{value:.6g}"'
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    )
    scores = "".join(
        f"<div><dt>{escape(LABELS[name])}</dt><dd>{_number(values[name])}{extra}</dd></div>"
        for name, extra in (
            ("recall_at_1", ""),
            ("clip_similarity", ""),
            ("iou", _iou_scale(row)),
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
    tags = "".join(f"<span>{escape(tag)}</span>" for tag in (row.kind, row.split) if tag)
    if row.near_train is not None:
        tags += f'<span title="{escape(row.near_train)}">near a trained prompt</span>'
    return (
        f'<article class="card" data-index="{index}" data-id="{escape(row.id)}" '
        f'data-split="{escape(row.split)}" data-kind="{escape(row.kind or "")}"{data}>'
        f'{_media(row)}<div class="text"><h3>{escape(row.text)}</h3><p class="tags">{tags}</p>'
        f"<dl>{scores}</dl></div></article>"
    )


def _media(row: PromptRow) -> str:
    strip = escape(quote(row.strip)) if row.strip else ""
    out = ""
    if row.turntable:
        poster = f' poster="{strip}"' if strip else ""
        out += (
            f'<video src="{escape(quote(row.turntable))}"{poster} autoplay loop muted playsinline '
            f'aria-label="Turntable of {escape(row.text)}"></video>'
        )
    if strip:
        out += (
            f'<a class="strip" href="{strip}" title="The scored views"><img src="{strip}" loading="lazy" '
            f'alt="Scored views of {escape(row.text)}, the front first"></a>'
        )
    return out


def _iou_scale(row: PromptRow) -> str:
    references = (("start", row.iou_start), ("best sphere", row.iou_best_sphere))
    marks = [(word, value) for word, value in references if value is not None]
    value = row.iou if row.iou is not None else math.nan
    return _scale(Interval(mean=value, low=0.0, high=value, n=1), marks)


def _gallery_notes(results: Results) -> str:
    notes = []
    if "iou_start" in results.metrics or "iou_best_sphere" in results.metrics:
        notes.append("Ticks on an IoU line: the untrained start and the best sphere.")
    if len(results.prompts) > MAX_CARDS:
        notes.append(
            f"The first {MAX_CARDS:,} of {len(results.prompts):,} prompts are shown here; "
            "the table above and results.csv cover all of them."
        )
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def _settings(settings: Mapping[str, object]) -> str:
    return "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in settings.items()
    )


def _sides(shown: tuple[bool, ...] | list[bool]) -> list[str]:
    return [side for side, is_shown in zip(SIDES, shown, strict=False) if is_shown]


def _number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


def _interval(interval: Interval) -> str:
    if not math.isfinite(interval.mean):
        return "undefined"
    return f"{_number(interval.low)} – {_number(interval.high)}"


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _percent(value: float) -> str:
    return f"{100 * _clip(value):.2f}%"
