"""The page of a comparison as one HTML document: runs, paired differences, training curves, prompts."""

from __future__ import annotations

from amortized.comparison.cards import Shown, cards, controls, signed
from amortized.comparison.evaluations import CURVES, Evaluated
from amortized.comparison.paired import LOWER_IS_BETTER, Comparison, Difference
from amortized.evaluation.results import LABELS, SOLID_OF_SPLATS
from amortized.pages import Line, asset, charts, document, key, navigation, number, section, text
from amortized.wording import count

SCRIPT = asset("comparison/compare.js") + asset("pages/viewing.js")
DOWNLOADS = {"comparison.json": "the differences", "comparison.csv": "the scores of all prompts as a table"}
FACTS = {  # of the provenance, by title
    "Method": "method",
    "Checkpoint": "checkpoint",
    "Generator": "generator",
    "Corpus": "corpus",
    "Evaluated prompts": "prompts",
    "Evaluated at": "date",
}


def page(comparison: Comparison, media: Shown) -> str:
    """The page as text; the media lie beside it."""
    labels = [text(run.label, 60) for run in comparison.runs]
    parts = {"differences": "Differences", "runs": "Runs", "training": "Training", "by-prompt": "Prompts"}
    downloads = "".join(
        f'<li><a href="{name}" download>{name}</a> {words}</li>' for name, words in DOWNLOADS.items()
    )
    prompts = section("by-prompt", "Prompts", cards(comparison, media), beside=controls(comparison))
    body = f"""<header>
<p class="overline">Comparison</p>
<h1>{" · ".join(f"<bdi>{label}</bdi>" for label in labels)}</h1>
<p class="lead">{_lead(comparison)}</p>
{_warning(comparison)}
{navigation({**parts, "downloads": "Downloads"})}
</header>
<main>
{section("differences", "Differences", _differences(comparison))}
{section("runs", "Runs", _runs(comparison))}
{section("training", "Training", _training(comparison))}
{prompts}
{section("downloads", "Downloads", f'<ul class="downloads">{downloads}</ul>')}
</main>"""
    return document(
        title=" · ".join(labels),
        body=body,
        style=asset("comparison/compare.css"),
        script=SCRIPT,
        kind="comparison",
        frames=any(one.object for one in media.values()),
    )


def _lead(comparison: Comparison) -> str:
    total, shared = len(comparison.texts), comparison.shared
    parts = [count(len(comparison.runs), "evaluation"), count(total, "prompt")]
    if apart := total - shared:
        parts.append(f"{shared:,} in all of them, {apart:,} only in some")
    return " · ".join(parts)


def _warning(comparison: Comparison) -> str:
    if not comparison.other_settings:
        return ""
    differing = "; ".join(text(one) for one in comparison.other_settings)
    return (
        '<p class="warning" role="note">Evaluated with different settings, which change scores too: '
        f"{differing}</p>"
    )


def _differences(comparison: Comparison) -> str:
    first = comparison.runs[0]
    head = "".join(
        f'<th scope="col">{key(number)}<bdi>{text(run.label, 60)}</bdi></th>'
        for number, run in enumerate(comparison.runs[1:], 1)
    )
    body = ""
    for name in comparison.metrics:
        cells = "".join(_cell(some.get(name)) for some in comparison.differences)
        lower = "<small>lower is better</small>" if name in LOWER_IS_BETTER else ""
        body += f'<tr><th scope="row">{text(LABELS[name])}{lower}</th>{cells}</tr>'
    labels = ", ".join(f"<bdi>{text(run.label, 60)}</bdi>" for run in comparison.runs if _has_splats(run))
    solid = f'<p class="note">{labels}: {SOLID_OF_SPLATS}</p>' if labels else ""
    return (
        f'<p class="note">Minus <bdi>{text(first.label, 60)}</bdi>, over the prompts that both have. In '
        "brackets the 95&#8201;% bootstrap interval over prompts, then the two means. A difference is called "
        "better or worse if its interval excludes 0.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Differences by score">'
        f'<table class="paired"><thead><tr><th scope="col">Score</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{solid}"
    )


def _has_splats(run: Evaluated) -> bool:
    return any(row.splats for row in run.rows.values())


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return "<td>–<small>no prompt in common</small></td>"
    interval = difference.interval
    bounds = f" [{signed(interval.low)}, {signed(interval.high)}]" if interval.n > 1 else ""
    return (
        f'<td><b class="{difference.verdict}">{signed(interval.mean)}</b>{bounds}'
        f"<small>{number(difference.first)} → {number(difference.other)}, {count(interval.n, 'prompt')}, "
        f'<span class="{difference.verdict}">{difference.verdict}</span></small></td>'
    )


def _runs(comparison: Comparison) -> str:
    titles = [
        title for title, fact in FACTS.items() if any(fact in run.provenance for run in comparison.runs)
    ]
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Run", "Prompts", *titles, "Folder"))

    def row(number: int, run: Evaluated) -> str:
        facts = [text(run.provenance.get(FACTS[title], "–"), 60) for title in titles]
        cells = "".join(f"<td>{one}</td>" for one in (f"{len(run.rows):,}", *facts, text(run.folder, 120)))
        return f'<tr><th scope="row">{key(number)}<bdi>{text(run.label, 60)}</bdi></th>{cells}</tr>'

    body = "".join(row(number, run) for number, run in enumerate(comparison.runs))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _training(comparison: Comparison) -> str:
    lines = {
        name: [
            Line(points=run.history.curves[name], name=run.label, style=number)
            for number, run in enumerate(comparison.runs)
            if name in run.history.curves
        ]
        for name in CURVES
    }
    left_out = "".join(
        f'<p class="note">Without <bdi>{text(run.label, 60)}</bdi>: '
        f"{text(run.history.note or 'its log is empty')}.</p>"
        for run in comparison.runs
        if not run.history.curves
    )
    return (charts(lines) if any(lines.values()) else "") + left_out
