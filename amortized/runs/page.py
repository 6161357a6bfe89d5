"""The page of all runs: one HTML file with their status, curves, settings that differ, previews and events.

It has no script, and pictures are inside it, so that the file can be sent alone.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from amortized.files import atomic_write_text
from amortized.pages import (
    PREVIEW_SCORES,
    History,
    Line,
    asset,
    charts,
    document,
    find_picture,
    is_page_of,
    key,
    load_history,
    navigation,
    section,
    text,
)
from amortized.pages.markup import short_number
from amortized.runs.folder import LOG, MAX_ENTRIES
from amortized.runs.status import MEANINGS, Run
from amortized.runs.table import progress
from amortized.untrusted import MiB, inside, open_regular, read_bytes, short
from amortized.wording import count, duration

KIND = "runs"
CURVES = ("loss", "opacity", PREVIEW_SCORES[0])
MAX_COMPARED = 12  # runs in a chart and in the table of settings: as many lines can be distinguished
MAX_SETTINGS, MAX_EVENTS = 60, 12
PICTURE_LIMIT, PICTURES_LIMIT = 2 * MiB, 24 * MiB  # of one preview, and of all in the page
_PREVIEW = re.compile(r"step_([0-9]{6,12})(-[a-z0-9-]{1,60})?\.png")


def write_page(path: Path, runs: Sequence[Run], reload_s: int | None = None) -> None:
    """Write the page of runs; with `reload_s` browsers load it again after so many seconds.

    Raises ValueError if the file exists and is not such a page, and OSError if it cannot be written.
    """
    if os.path.lexists(path):
        with open_regular(path, 2**31) as file:
            if not is_page_of(file.read(1024), KIND):
                raise ValueError(f"{short(path)} was not written by this command: choose another name")
    atomic_write_text(path, page(runs, datetime.now(UTC), reload_s))


def page(runs: Sequence[Run], now: datetime, reload_s: int | None = None) -> str:
    """The page as text."""
    # What is alive or was alive last comes first.
    order = sorted(
        runs, key=lambda run: (run.status not in ("running", "waiting"), -(run.facts.written or 0))
    )
    compared = [run for run in order if run.facts.step is not None][:MAX_COMPARED]
    styles = {run.facts.folder: number for number, run in enumerate(compared)}
    histories = [load_history(run.facts.folder / LOG, names=CURVES) for run in compared]
    parts = {"overview": "Overview", "curves": "Curves", "settings": "Settings", "runs": "Runs"}
    body = f"""<header>
<p class="overline">{count(len(runs), "run")}</p>
<h1>Runs</h1>
<p class="lead">As of <time datetime="{now:%Y-%m-%dT%H:%M:%SZ}">{now:%Y-%m-%d %H:%M:%S} UTC</time></p>
{navigation(parts)}
</header>
<main>
{section("overview", "Overview", _overview(order, styles))}
{section("curves", "Curves", _curves(compared, histories))}
{section("settings", "Settings", _differences(compared))}
{section("runs", "Runs", _details(order))}
</main>"""
    return document(title="Runs", body=body, style=asset("runs/runs.css"), kind=KIND, reload_s=reload_s)


def _overview(runs: Sequence[Run], styles: dict[Path, int]) -> str:
    if not runs:
        return '<p class="note">There is none.</p>'
    titles = ("Run", "Status", "Step", "Time left", "Loss", "Configuration")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles[:-1])
    head += f'<th scope="col" class="words">{titles[-1]}</th>'

    def row(number: int, run: Run) -> str:
        facts = run.facts
        sample = key(styles[facts.folder]) if facts.folder in styles else ""
        detail = f"<small>{text(run.detail, 300)}</small>" if run.detail else ""
        return (
            f'<tr><th scope="row">{sample}<a href="#run-{number}"><bdi>{text(facts.name, 80)}</bdi></a></th>'
            f"<td>{_status(run)}</td><td>{text(progress(run))}</td>"
            f"<td>{'' if run.left_s is None else duration(min(run.left_s, 1e10))}</td>"
            f"<td>{'' if facts.loss is None else short_number(facts.loss)}</td>"
            f'<td class="words"><bdi>{text(facts.config, 80)}</bdi>{detail}</td></tr>'
        )

    body = "".join(row(number, run) for number, run in enumerate(runs))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _status(run: Run) -> str:
    return f'<span class="status {run.status}" title="{text(MEANINGS[run.status])}">{run.status}</span>'


def _curves(runs: Sequence[Run], histories: Sequence[History]) -> str:
    lines = {
        name: [
            Line(points=history.curves[name], name=run.facts.name, style=number)
            for number, (run, history) in enumerate(zip(runs, histories, strict=True))
            if name in history.curves
        ]
        for name in CURVES
    }
    notes = "".join(
        f'<p class="note">Without <bdi>{text(run.facts.name, 80)}</bdi>: {text(history.note)}.</p>'
        for run, history in zip(runs, histories, strict=True)
        if history.note
    )
    return (charts(lines) if any(lines.values()) else '<p class="note">There are none yet.</p>') + notes


def _differences(runs: Sequence[Run]) -> str:
    """The settings in which the runs differ, a column each."""
    runs = [run for run in runs if run.facts.settings]
    names = dict.fromkeys(name for run in runs for name in run.facts.settings if name != "output")
    values = {name: [_written(run.facts.settings, name) for run in runs] for name in names}
    differing = [name for name, row in values.items() if len(set(row)) > 1]
    if not differing:
        return '<p class="note">There are no differences.</p>'
    head = "".join(f'<th scope="col"><bdi>{text(run.facts.name, 80)}</bdi></th>' for run in runs)
    body = "".join(
        f'<tr><th scope="row">{text(name, 80)}</th>'
        + "".join(f"<td><bdi>{text(value, 120)}</bdi></td>" for value in values[name])
        + "</tr>"
        for name in differing[:MAX_SETTINGS]
    )
    more = len(differing) - MAX_SETTINGS
    note = (
        f'<p class="note">{count(more, "more setting differs", "more settings differ")}.</p>'
        if more > 0
        else ""
    )
    return (
        f'<p class="note">Those in which {count(len(runs), "run")} differ.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Settings that differ">'
        f'<table class="diff"><thead><tr><th scope="col">Setting</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _written(settings: Mapping[str, object], name: str) -> str:
    value = settings.get(name, "unset")
    return str(value if isinstance(value, str) else json.dumps(value, default=str))[:1000]


def _details(runs: Sequence[Run]) -> str:
    room = PICTURES_LIMIT
    articles = []
    for number, run in enumerate(runs):
        picture = _preview(run.facts.folder, min(room, PICTURE_LIMIT))
        room -= len(picture)
        events = "".join(
            f"<li><span>{text(event.time[:19].replace('T', ' '), 40)}</span><b>step {event.step:,}</b>"
            f"<bdi>{text(event.note, 500)}</bdi></li>"
            for event in reversed(run.facts.events[-MAX_EVENTS:])
        )
        events = f'<ol class="events" reversed>{events}</ol>' if events else ""
        detail = f'<p class="note">{text(run.detail, 1000)}</p>' if run.detail else ""
        articles.append(
            f'<article class="run" id="run-{number}">'
            f"<h3><bdi>{text(run.facts.name, 120)}</bdi> {_status(run)}</h3>"
            f'<p class="note"><bdi>{text(run.facts.folder, 300)}</bdi></p>{detail}{picture}'
            f"{events}</article>"
        )
    return "".join(articles) or '<p class="note">There is none.</p>'


def _preview(folder: Path, limit: int) -> str:
    """The newest preview as a picture inside the page; empty without one, or if it is too large."""
    try:
        with os.scandir(folder / "previews") as entries:
            names = [entry.name for _, entry in zip(range(MAX_ENTRIES), entries, strict=False)]
        matches = [match for name in names if (match := _PREVIEW.fullmatch(name))]
        if not matches:
            return ""
        newest = max(matches, key=lambda match: (int(match[1]), match[2] is None))
        path = f"previews/{newest[0]}"
        picture = find_picture(folder, path)
        if picture is None:
            return ""
        data = base64.b64encode(read_bytes(inside(folder, path), limit * 3 // 4)).decode()
    except (OSError, ValueError):
        return ""
    return (
        f'<img src="data:image/png;base64,{data}" width="{picture.width}" height="{picture.height}" '
        f'alt="Views of the preview prompts at step {int(newest[1]):,}">'
    )
