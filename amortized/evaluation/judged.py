"""The scores of a protocol on disk: a row for each prompt as soon as it is scored, then the tables.

rows/RANK.jsonl holds the rows of a process. identity.json says what they are scores of: rows of anything else
are removed when another evaluation writes into the folder.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amortized.evaluation.folder import writing
from amortized.evaluation.judging import JudgedRow
from amortized.evaluation.metrics import bootstrap_interval, chance_recall
from amortized.evaluation.report import inert
from amortized.evaluation.results import plain
from amortized.files import atomic_write_text
from amortized.pages import finite
from amortized.untrusted import MiB, read_json_object, read_text, short
from amortized.wording import count

IDENTITY, SCORES, TABLE, ROWS = "identity.json", "scores.json", "scores.csv", "rows"
LIMIT = 4096 * MiB  # of a file of rows; one has some 20 KB with 810 views


def open_folder(folder: Path, identity: Mapping[str, Any]) -> tuple[dict[str, JudgedRow], str]:
    """The rows that are already there, by prompt id, and a note if others were removed. Creates the folder.

    Raises ValueError for a folder with other files, or that cannot be written.
    """
    wanted = json.loads(json.dumps(identity))
    file, note = folder / IDENTITY, ""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{short(folder)} has files that are not scores of a protocol: choose a new folder (--output)"
            )
        if file.exists() and (before := read_json_object(file)) != wanted:
            changed = sorted(key for key in {*before, *wanted} if before.get(key) != wanted.get(key))
            note = f"{short(folder)} had scores with another {', '.join(changed)}, which are replaced"
            for path in (*(folder / ROWS).glob("*.jsonl"), folder / SCORES, folder / TABLE):
                path.unlink(missing_ok=True)
        (folder / ROWS).mkdir(exist_ok=True)
        atomic_write_text(file, json.dumps(wanted, indent=2) + "\n")
    rows = [row for path in sorted((folder / ROWS).glob("*.jsonl")) for row in _read(path)]
    return {row.id: row for row in rows}, note


def add_row(folder: Path, rank: int, row: JudgedRow) -> None:
    """Append a row to the file of this process."""
    with writing(folder), (folder / ROWS / f"{rank:03}.jsonl").open("a", encoding="utf-8") as file:
        # On a line before which a kill may have left half of another.
        file.write("\n" + json.dumps(plain(asdict(row))) + "\n")


def _read(path: Path) -> Iterable[JudgedRow]:
    """The rows of a file. A line that a kill cut off is skipped, so its prompt is scored again."""
    for line in read_text(path, LIMIT).split("\n"):
        try:
            data = json.loads(line)
            texts = {key: data[key] for key in ("id", "text", "split", "missing")}
            scores = {str(key): _number(value) for key, value in data["scores"].items()}
            views = tuple(_number(value) for value in data["views"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if all(isinstance(value, str) for value in texts.values()):
            yield JudgedRow(**texts, scores=scores, views=views)


def _number(value: Any) -> float:
    """A number of a row; one that was not finite is stored as null."""
    if value is not None and finite(value) is None:
        raise ValueError("not a number")
    return math.nan if value is None else float(value)


def write_scores(
    folder: Path, rows: Sequence[JudgedRow], *, identity: Mapping[str, Any], gallery: int | None, seed: int
) -> str:
    """Write scores.json and scores.csv of all rows; returns the means as text.

    gallery  number of texts that recall@1 chooses among, if there is one
    seed     of the bootstrap
    """
    names = list(rows[0].scores)
    means = {name: asdict(bootstrap_interval([r.scores[name] for r in rows], seed=seed)) for name in names}
    missing = {row.id: row.missing for row in rows if row.missing}
    undefined = [row.id for row in rows if not all(math.isfinite(value) for value in row.scores.values())]
    data = {
        **identity,
        "metrics": means,
        "chance": None if gallery is None else {"recall_at_1": chance_recall(gallery), "gallery": gallery},
        "missing": missing,
        "undefined": undefined,
        "prompts": [asdict(row) for row in rows],
    }
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["id", "text", "split", *names, "missing"])
    for row in rows:
        values = [row.id, row.text, row.split, *(row.scores[name] for name in names), row.missing]
        writer.writerow([inert(value) for value in values])
    with writing(folder):
        atomic_write_text(folder / TABLE, table.getvalue())
        atomic_write_text(folder / SCORES, json.dumps(plain(data), indent=1) + "\n")
    lines = [f"{identity['protocol']} by {identity['judge']}: {count(len(rows), 'prompt')}"]
    for name, mean in means.items():
        chance = f" (chance {chance_recall(gallery):.4f})" if gallery and name == "recall_at_1" else ""
        interval = f"   [{mean['low']:.4f}, {mean['high']:.4f}]" if mean["n"] > 1 else ""
        lines.append(f"  {name:<18} {mean['mean']:7.4f}{interval}{chance}")
    if missing:
        lines.append(f"  {count(len(missing), 'object')} without a surface scored as black images")
    if undefined:
        lines.append(f"  {count(len(undefined), 'prompt')} with a score that is not finite")
    return "\n".join(lines)
