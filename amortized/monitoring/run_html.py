"""The HTML of a run's page, from a snapshot of its state. It has no script: the browser reloads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from amortized.pages import (
    PREVIEW_SCORES,
    Line,
    Picture,
    asset,
    block,
    charts,
    document,
    image,
    navigation,
    section,
    text,
)
from amortized.pages.markup import link, short_number
from amortized.wording import count, duration

Status = Literal["training", "finished", "stopped", "failed"]
KIND = "run"
MAX_DURATION_S = 1e10
CURVES = ("loss", "opacity", "gradient_norm", *PREVIEW_SCORES)  # and the learning rates
LATEST = {  # label and note of the numbers in tiles
    "loss": ("Loss", "of the last logged step"),
    "opacity": ("Opacity", "mean of the renders"),
    "speed/prompts_per_second": ("Prompts per second", ""),
    "memory_gib": ("Peak memory", "GiB, of any process"),
}
WORDS = {
    "training": "Training",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about a run that stay the same."""

    name: str
    steps: int
    config_yaml: str = ""
    resume: str = ""  # the command that resumes it
    change: str = ""  # the command that resumes it with changed settings
    evaluate: str = ""  # the command that evaluates it
    started_in: str = ""  # the folder in which the commands work
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of events.jsonl."""

    time: str
    step: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a run when its page was written."""

    status: Status
    reason: str = ""  # of an early end
    needs_change: bool = False  # the same settings would fail again, and are refused
    step: int
    time: datetime
    step_s: float | None = None  # seconds per step, of late
    trained_s: float | None = None  # in steps, earlier processes included
    latest: Mapping[str, float] = field(default_factory=dict)  # numbers of the last step
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    previews: Mapping[int, Picture] = field(default_factory=dict)  # by step, the newest first
    scores: Mapping[int, float] = field(default_factory=dict)  # CLIP similarity of previews, by step
    num_previews: int = 0  # of which `previews` may be a part
    events: Sequence[Event] = ()  # the newest first
    every_s: float = 30.0


def run_html(facts: Facts, now: Snapshot) -> str:
    """The page as text."""
    parts = {"progress": "Progress", "curves": "Curves", "previews": "Previews", "events": "Events"}
    parts |= {"settings": "Settings"} if facts.config_yaml else {}
    name, word = text(facts.name, 80), WORDS[now.status]
    share = f"{100 * now.step // max(1, facts.steps)} %"
    body = f"""<header>
<p class="overline">Run · <span class="status {now.status}">{word}</span></p>
<h1><bdi>{name}</bdi></h1>
{_lead(facts, now)}
{navigation(parts)}
</header>
<main>
{section("progress", "Progress", _progress(facts, now))}
{section("curves", "Curves", _curves(now))}
{section("previews", "Previews", _previews(now))}
{section("events", "Events", _events(now))}
{section("settings", "Settings", _settings(facts)) if facts.config_yaml else ""}
</main>"""
    return document(
        title=f"{word if now.status != 'training' else share} · {name}",
        body=body,
        style=asset("monitoring/run.css"),
        kind=KIND,
        reload_s=round(now.every_s) if now.status == "training" else None,
    )


def _lead(facts: Facts, now: Snapshot) -> str:
    """What the run is doing, and the command to continue with."""
    written = f'<time datetime="{now.time:%Y-%m-%dT%H:%M:%SZ}">{now.time:%Y-%m-%d %H:%M:%S} UTC</time>'
    resume = _command(facts, facts.resume)
    match now.status:
        case "training":
            return (
                f'<p class="lead">As of {written}, and written again every {duration(now.every_s)}, or after '
                f"a step that takes longer; if not, the process was killed. Then resume with</p>{resume}"
            )
        case "finished":
            return f'<p class="lead">Trained to the last step at {written}. Evaluate it with</p>' + _command(
                facts, facts.evaluate
            )
        case "stopped":
            return f'<p class="lead">{text(now.reason, 2000)} {written}. Resume with</p>{resume}'
        case "failed":
            remedy = "After a change of settings" if now.needs_change else "When the cause is removed"
            return (
                f'<p class="lead">Ended at {written}:</p>'
                f'<p class="reason" role="alert">{text(now.reason, 2000)}</p>'
                f'<p class="lead">{remedy}, resume with</p>'
                f"{_command(facts, facts.change) if now.needs_change else resume}"
            )


def _command(facts: Facts, command: str) -> str:
    """A command, with where it works."""
    if not command:
        return ""
    where = f"in {text(facts.started_in, 1000)}" if facts.started_in else ""
    several = f"on {facts.processes} processes, with the launcher used before" if facts.processes > 1 else ""
    notes = " ".join(part for part in (where, several) if part)
    return f'<pre class="command" tabindex="0">{text(command, 5000)}</pre>' + (
        f'<p class="note">{notes}</p>' if notes else ""
    )


def _progress(facts: Facts, now: Snapshot) -> str:
    latest, left = now.latest, max(0, facts.steps - now.step)
    tiles = [("Step", f"{now.step:,}", f"of {facts.steps:,}")]
    if now.status == "training":
        estimate = "–" if now.step_s is None else f"{_seconds(left * now.step_s)}"
        tiles += [("Time left", estimate, "" if now.step_s is None else f"{_seconds(now.step_s)} per step")]
    if now.trained_s is not None:
        tiles += [("Trained for", _seconds(now.trained_s), "in steps")]
    for name, (label, note) in LATEST.items():
        if name in latest:
            tiles += [(label, short_number(latest[name]), note)]
    shown = "".join(
        f'<article class="tile"><h3>{label}</h3><p class="value">{value}</p>'
        f'<p class="note">{note}</p></article>'
        for label, value, note in tiles
    )
    bar = f'<progress max="{facts.steps}" value="{now.step}" aria-label="Steps">{now.step}</progress>'
    return f'{bar}<div class="tiles">{shown}</div>'


def _seconds(seconds: float) -> str:
    return duration(min(max(seconds, 0.0), MAX_DURATION_S))


def _curves(now: Snapshot) -> str:
    prefix = "learning_rate/"
    lines = {name: [Line(points=now.curves[name])] for name in CURVES if name in now.curves}
    rates = [
        (name.removeprefix(prefix), points) for name, points in now.curves.items() if name.startswith(prefix)
    ]
    lines["learning_rate"] = [
        Line(points=points, name=name, style=style) for style, (name, points) in enumerate(rates)
    ]
    return charts(lines) if any(lines.values()) else '<p class="note">They begin with the second step.</p>'


def _previews(now: Snapshot) -> str:
    if not now.previews:
        return '<p class="note">There is none yet.</p>'
    (newest, picture), *older = now.previews.items()
    out = _preview(newest, picture, now.scores.get(newest), lazy=False)
    if older:
        left_out = now.num_previews - len(now.previews)
        note = f", {count(left_out, 'more is', 'more are')} in the folder previews" if left_out > 0 else ""
        items = "".join(_preview(step, picture, now.scores.get(step)) for step, picture in older)
        out += (
            f'<div><h3>Earlier{note}</h3><div class="film" tabindex="0" role="region" '
            f'aria-label="Earlier previews, the newest first">{items}</div></div>'
        )
    return f'<div class="previews">{out}</div>'


def _preview(step: int, picture: Picture, score: float | None, *, lazy: bool = True) -> str:
    shown = image(picture, f"Views of the preview prompts at step {step:,}, captions below", lazy=lazy)
    words = "" if lazy else "CLIP similarity "  # the small ones have no room for it
    words = (
        "" if score is None else f' <span title="CLIP similarity">{words}<b>{short_number(score)}</b></span>'
    )
    return (
        f'<figure class="preview"><figcaption>Step {step:,}{words}</figcaption>'
        f'<a href="{link(picture.path)}">{shown}</a></figure>'
    )


def _events(now: Snapshot) -> str:
    if not now.events:
        return '<p class="note">There is none yet.</p>'
    rows = "".join(
        f"<li><span>{text(event.time[:19].replace('T', ' '), 40)}</span> <b>step {event.step:,}</b> "
        f"<bdi>{text(event.note, 1000)}</bdi></li>"
        for event in now.events
    )
    return f'<ol class="events" reversed>{rows}</ol>'


def _settings(facts: Facts) -> str:
    return f"<details><summary>config.yaml</summary><pre>{block(facts.config_yaml)}</pre></details>"
