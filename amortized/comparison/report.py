"""Write a comparison: a page with its pictures and objects, and the numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from amortized.comparison.cards import MAX_CARDS, OBJECTS, Media, Shown
from amortized.comparison.evaluations import Evaluated
from amortized.comparison.page import page
from amortized.comparison.paired import Comparison, score
from amortized.evaluation.folder import INDEX, link_or_copy, writing
from amortized.evaluation.report import inert
from amortized.files import atomic_write_text
from amortized.names import slug
from amortized.pages import SUFFIXES, Picture, find_media, find_picture, write_script, write_viewer
from amortized.untrusted import inside


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write index.html, comparison.json, comparison.csv, index.json and media into an empty folder.

    Pictures, turntables and objects are second names of the files of the evaluations, or copies if those are
    on another disk: the folder can be moved. Raises ValueError if the disk is full or read-only.
    """
    with writing(folder):
        media = _collect(folder, comparison)
        atomic_write_text(folder / "comparison.json", _json(comparison.to_json()))
        atomic_write_text(folder / "comparison.csv", _table(comparison))
        atomic_write_text(folder / "index.html", page(comparison, media))
        atomic_write_text(folder / INDEX, _json(_index(comparison, media)))


def _collect(folder: Path, comparison: Comparison) -> Shown:
    """Bring the media that the page shows, of the runs and of the truth, into `folder`."""
    found: dict[tuple[int | None, str], Media] = {}
    for index, text in enumerate(comparison.texts[:MAX_CARDS]):
        name = f"{index + 1:04d}-{slug(text)}"
        for number, run in enumerate(comparison.runs):
            row = run.rows.get(text)
            if row is None:
                continue
            place = number + 1
            found[number, text] = Media(
                picture=_picture(folder, run, row.strip, f"pictures/{place}/{name}.png"),
                object=_object(folder, run, row.object, f"{OBJECTS}{name}-{place}"),
                antialias=row.antialias,
                turntable=_linked(folder, run, row.turntable, f"turntables/{place}/{name}.mp4"),
            )
            if (None, text) not in found:
                truth = _picture(folder, run, row.truth_strip, f"pictures/truth/{name}.png")
                found |= {(None, text): Media(picture=truth)} if truth else {}
    return found


def _picture(folder: Path, run: Evaluated, path: str | None, target: str) -> Picture | None:
    if path is None or (picture := find_picture(run.folder, path)) is None:
        return None
    link_or_copy(inside(run.folder, path).resolve(), folder / target)
    return Picture(path=target, width=picture.width, height=picture.height)


def _linked(folder: Path, run: Evaluated, path: str | None, target: str) -> str | None:
    """`target`, if it is a file of the run now."""
    if path is None or Path(path).suffix != Path(target).suffix or not find_media(run.folder, path):
        return None
    link_or_copy(inside(run.folder, path).resolve(), folder / target)
    return target


def _object(folder: Path, run: Evaluated, path: str | None, stem: str) -> str | None:
    """As `_linked`, with what shows an object from disk: nothing that runs comes from the evaluation."""
    target = stem + next((suffix for suffix in SUFFIXES if (path or "").endswith(suffix)), ".glb")
    if _linked(folder, run, path, target) is None:
        return None
    if not (folder / OBJECTS / "viewer").exists():
        write_viewer(folder / OBJECTS)
    write_script(folder / target)
    return target


def _index(comparison: Comparison, media: Shown) -> list[dict[str, str]]:
    """Which files show which prompt of which run."""
    labels = {None: "truth", **{number: run.label for number, run in enumerate(comparison.runs)}}
    entries = []
    for (number, text), one in media.items():
        strip = one.picture.path if one.picture else None
        files = {"strip": strip, "turntable": one.turntable, "object": one.object}
        listed = {key: path for key, path in files.items() if path}
        if listed:
            name = next(iter(listed.values()))
            entries.append({"id": name, "run": labels[number], "prompt": text, **listed})
    return entries


def _table(comparison: Comparison) -> str:
    """A line per prompt with the scores of all runs. Text cannot start a formula; see `inert`."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    titles = [f"{run.label}: {name}" for run in comparison.runs for name in comparison.metrics]
    writer.writerow(["prompt", *map(inert, titles)])
    for text in comparison.texts:
        scores = [score(run.rows.get(text), name) for run in comparison.runs for name in comparison.metrics]
        writer.writerow([inert(text), *("" if value is None else value for value in scores)])
    return table.getvalue()


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
