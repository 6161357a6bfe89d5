"""Write the results of an evaluation: results.json, results.csv, index.json and a page.

In the table no text can start a spreadsheet formula.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from amortized.evaluation.folder import INDEX, writing
from amortized.evaluation.page import DOWNLOADS, page
from amortized.evaluation.results import SIDES, Results, index_entry, row_values
from amortized.files import atomic_write_text
from amortized.pages import History

# OWASP's list for CSV injection, and the full-width signs that spreadsheets read like the plain ones.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_results(
    folder: str | Path, results: Results, *, history: History | None = None, config_yaml: str | None = None
) -> None:
    """Write results.json, results.csv, config.yaml, index.html and index.json, each atomically.

    Raises ValueError if the disk is full or read-only.
    """
    folder = Path(folder)
    entries = [index_entry(row) for row in results.prompts]
    downloads = {name: words for name, words in DOWNLOADS.items() if name != "config.yaml" or config_yaml}
    with writing(folder):
        atomic_write_text(folder / "results.json", _json(results.to_json()))
        atomic_write_text(folder / "results.csv", csv_table(results))
        if config_yaml:
            atomic_write_text(folder / "config.yaml", config_yaml)
        atomic_write_text(folder / "index.html", page(results, history, downloads))
        atomic_write_text(folder / INDEX, _json(entries))


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def csv_table(results: Results) -> str:
    """The results as CSV, one line per prompt. An empty cell is a score that does not apply.

    Text that a spreadsheet would run as a formula gets an apostrophe in front, as OWASP advises for CSV
    injection; results.json has the exact text.
    """
    table = io.StringIO(newline="")
    rows = [row_values(row) for row in results.prompts]
    writer = csv.DictWriter(
        table, list(rows[0])
    )  # RFC 4180: lines end with CRLF, so both are quoted in cells
    writer.writeheader()
    for row in rows:
        sides = zip(SIDES, row["mark_sides"] or (), strict=False)
        row["mark_sides"] = " ".join(side for side, is_shown in sides if is_shown)
        writer.writerow({name: inert(value) for name, value in row.items()})
    return table.getvalue()


def inert(value: object) -> object:
    """The value of a cell, with an apostrophe before text that starts like a formula; numbers stay.

    White space before the formula does not help: some spreadsheets remove it.
    """
    if not isinstance(value, str):
        return value
    starts_formula = value.startswith(FORMULA_STARTS) or value.lstrip().startswith(FORMULA_STARTS)
    return f"'{value}" if starts_formula else value
