"""The report as one HTML document that opens from disk, offline: pictures, scores, training, provenance.

Prompts are untrusted text: see `amortized.pages.markup`.
"""

from __future__ import annotations

from collections.abc import Mapping

from amortized.evaluation.cards import controls, gallery
from amortized.evaluation.metrics import Interval, chance_recall
from amortized.evaluation.results import LABELS, METRICS, Results
from amortized.evaluation.scales import interval_text, scale
from amortized.pages import History, asset, curves, document, link, navigation, number, pairs, section, text
from amortized.wording import count

SCRIPT = asset("pages/cards.js") + asset("pages/viewing.js")
HEADLINES = ("recall_at_1", "iou", "color_error", "clip_similarity", "front_shown", "janus")
PROVENANCE = {  # label of each key of `Results.provenance`, in order
    "method": "Guidance method",
    "checkpoint": "Checkpoint",
    "steps": "Steps",
    "training_s": "Training time",
    "generator": "Generator",
    "prior": "Prior",
    "corpus": "Corpus",
    "prompts": "Evaluated prompts",
    "seed": "Seed of the run",
    "evaluation_seed": "Seed of the intervals",
    "device": "Evaluated on",
    "date": "Evaluated at",
    "version": "Version",
    "commit": "Commit",
    "config": "Config",
    "config_sha256": "Its SHA-256 starts with",
}
DOWNLOADS = {
    "results.json": "all results",
    "results.csv": "the scores as a table",
    "index.json": "which files show which prompt",
    "config.yaml": "the settings",
}


def page(results: Results, history: History | None = None, files: Mapping[str, str] = DOWNLOADS) -> str:
    """The report; without a `history` it has no section on the training. `files` lie beside it."""
    heading, above = _titles(results)
    method = results.provenance.get("method")
    tab = " · ".join(part for part in (heading, *(above[:1]), text(method, 60) if method else "") if part)
    training = "" if history is None else section("training", "Training", curves(history))
    parts = {"pictures": "Pictures", "scores": "Scores"}
    parts |= {"training": "Training"} if training else {}
    parts |= {"provenance": "Provenance"} if results.provenance else {}
    body = f"""<header>
<p class="overline">{" · ".join(("Evaluation", *above))}</p>
<h1><bdi>{heading}</bdi></h1>
<p class="lead">{_lead(results)}</p>
{navigation({**parts, "downloads": "Downloads"})}
</header>
<main>
{section("pictures", "Pictures", gallery(results), beside=controls(results))}
{section("scores", "Scores", f'<div class="tiles">{_tiles(results)}</div>{_groups(results)}')}
{training}
{section("provenance", "Provenance", _provenance(results)) if results.provenance else ""}
{section("downloads", "Downloads", _downloads(files))}
<details><summary>Settings of the evaluation</summary><dl>{pairs(results.settings)}</dl></details>
</main>"""
    return document(
        title=tab,
        body=body,
        style=asset("pages/cards.css") + asset("evaluation/report.css"),
        script=SCRIPT,
        kind="evaluation",
        frames=True,
    )


def _titles(results: Results) -> tuple[str, list[str]]:
    """The heading, and what stands above it: an evaluation of one prompt is named by the prompt."""
    name = text(results.name or "Evaluation", 80)
    if len(results.prompts) == 1:
        return text(results.prompts[0].text, 120), [name]
    return name, []


def _lead(results: Results) -> str:
    prompts, made = len(results.prompts), results.provenance
    parts = [f"<b>{text(made['method'], 60)}</b> guidance"] if "method" in made else []
    parts += [f"{steps} steps"] if (steps := _steps(made)) else []
    parts += [count(prompts, "prompt")]
    parts += [count(len(results.by_kind), "kind")] if results.by_kind and prompts > 1 else []
    if isinstance(views := results.settings.get("views"), int):
        parts.append(f"{count(views, 'view')} each")
    if (near := results.nearness)["held_out"] and prompts > 1:
        parts.append(f"{near['near_train']:,} of {near['held_out']:,} held-out prompts near a trained one")
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
                note = f"chance {number(chance, 4)}: 1 of {count(results.gallery, 'text')}"
                if "recall_of_truth" in metrics:
                    truth = metrics["recall_of_truth"].mean
                    marks.append(("truth", truth))
                    note += f" · true objects {number(truth)}"
            case "iou":
                marks = [
                    (word, metrics[key].mean)
                    for word, key in (("start", "iou_start"), ("best sphere", "iou_best_sphere"))
                    if key in metrics
                ]
                note = " · ".join(f"{word} {number(value)}" for word, value in marks)
            case "color_error":
                note = "mean absolute difference; lower is better"
            case "clip_similarity":
                note = "mean cosine between image and text"
            case "front_shown":
                note = f"front shows the mark, over {count(metrics[name].n, 'marked prompt')}"
            case "janus":
                note = "another side shows it too; lower is better"
        tiles.append(_tile(LABELS[name], metrics[name], marks, note))
    return "".join(tiles)


def _tile(label: str, interval: Interval, marks: list[tuple[str, float]], note: str) -> str:
    shown = f'<p class="range">{words}</p>' if (words := interval_text(interval)) else ""
    return (
        f'<article class="tile"><h3>{text(label)}</h3><p class="value">{number(interval.mean)}</p>'
        f"{shown}{scale(interval, marks)}"
        f'<p class="note">{text(note)}</p></article>'
    )


def _groups(results: Results) -> str:
    """One table: all prompts, then the splits if there are several, then the kinds. One prompt needs none."""
    if len(results.prompts) == 1:
        return ""
    names = [name for name in METRICS if name in results.metrics]
    head = "".join(f'<th scope="col">{text(LABELS[name])}</th>' for name in names)
    groups = [("All prompts", results.metrics, len(results.prompts), "all")]
    for grouping, style in ((results.by_split, "split"), (results.by_kind, "kind")):
        if style == "kind" or len(grouping) > 1:
            groups += [
                (group, means, max(i.n for i in means.values()), style) for group, means in grouping.items()
            ]
    body = ""
    for group, means, prompts, style in groups:
        cells = "".join(
            f"<td>{number(means[name].mean)}<small>{interval_text(means[name])}</small></td>"
            if name in means
            else "<td>–</td>"
            for name in names
        )
        body += f'<tr class="{style}"><th scope="row">{text(group, 60)}</th><td>{prompts:,}</td>{cells}</tr>'
    return (
        '<p class="note">Below each mean, its 95&#8201;% bootstrap interval over prompts.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Scores by group"><table><thead><tr>'
        f'<th scope="col">Group</th><th scope="col">Prompts</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _provenance(results: Results) -> str:
    made = dict(results.provenance)
    if isinstance(seconds := made.get("training_s"), int | float):
        made["training_s"] = duration(seconds)
    shown = {"steps": _steps(made), "config_sha256": str(made.get("config_sha256", ""))[:16]}
    made |= {key: value for key, value in shown.items() if value}
    return f"<dl>{pairs({label: made[key] for key, label in PROVENANCE.items() if key in made})}</dl>"


def _steps(made: Mapping[str, object]) -> str:
    """The step of the checkpoint and the length of the training, as far as they are known."""
    step, steps = (made.get(key) for key in ("step", "steps"))
    known = isinstance(step, int) and isinstance(steps, int)
    return f"{step:,} of {steps:,}" if known else ""


def _downloads(files: Mapping[str, str]) -> str:
    items = "".join(
        f'<li><a href="{link(name)}" download>{text(name)}</a> {text(words)}</li>'
        for name, words in files.items()
    )
    return f'<ul class="downloads">{items}</ul>'


def duration(seconds: float) -> str:
    """A time in words: "42 s", "3 min 30 s", "5 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
