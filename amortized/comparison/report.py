"""Write a comparison: a page with its pictures, and the numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from amortized.comparison.cards import MAX_CARDS, Pictures
from amortized.comparison.page import page
from amortized.comparison.paired import Comparison, score
from amortized.evaluation.folder import INDEX, link_or_copy, writing
from amortized.evaluation.report import inert
from amortized.files import atomic_write_text
from amortized.names import slug
from amortized.pages import Picture, find_picture
from amortized.untrusted import inside


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write index.html, comparison.json, comparison.csv, index.json and pictures/ into an empty folder.

    The pictures are second names of the files of the evaluations, or copies if those are on another disk: the
    folder can be moved. Raises ValueError if the disk is full or read-only.
    """
    with writing(folder):
        pictures = _collect(folder, comparison)
        atomic_write_text(folder / "comparison.json", _json(comparison.to_json()))
        atomic_write_text(folder / "comparison.csv", _table(comparison))
        atomic_write_text(folder / "index.html", page(comparison, pictures))
        atomic_write_text(folder / INDEX, _json(_index(comparison, pictures)))


def _collect(folder: Path, comparison: Comparison) -> Pictures:
    """Bring the strips that the page shows, of the runs and of the truth, into `folder`."""
    found: Pictures = {}
    for index, text in enumerate(comparison.texts[:MAX_CARDS]):
        name = f"{index + 1:04d}-{slug(text)}.png"
        for number, run in enumerate(comparison.runs):
            row = run.rows.get(text)
            if row is None:
                continue
            wanted: list[tuple[int | None, str | None]] = [(number, row.strip)]
            if (None, text) not in found:
                wanted.append((None, row.truth_strip))
            for key, path in wanted:
                target = f"pictures/{'truth' if key is None else key + 1}/{name}"
                if path is not None and (picture := find_picture(run.folder, path)) is not None:
                    link_or_copy(inside(run.folder, path).resolve(), folder / target)
                    found[key, text] = Picture(path=target, width=picture.width, height=picture.height)
    return found


def _index(comparison: Comparison, pictures: Pictures) -> list[dict[str, str]]:
    """Which file shows which prompt of which run."""
    labels = {None: "truth", **{number: run.label for number, run in enumerate(comparison.runs)}}
    return [
        {"id": picture.path, "run": labels[number], "prompt": text, "strip": picture.path}
        for (number, text), picture in pictures.items()
    ]


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
