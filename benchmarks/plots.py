"""Draw the tables of studies as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # renders to files, opens no window
from matplotlib import pyplot

from amortized.evaluation.metrics import Interval


def intervals(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw a panel per column of intervals of the first row, with an error bar per row.

    Columns of differences, which the first row lacks, are in the table only.
    """
    columns = [name for name, value in rows[0].items() if isinstance(value, Interval)]
    figure, axes = pyplot.subplots(
        1,
        len(columns),
        figsize=(3 * len(columns), 0.8 + 0.32 * len(rows)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    positions = range(len(rows), 0, -1)
    for axis, column in zip(axes[0], columns, strict=True):
        cells = [row[column] for row in rows]
        low, high = ([abs(getattr(i, end) - i.mean) for i in cells] for end in ("low", "high"))
        axis.errorbar([i.mean for i in cells], positions, xerr=[low, high], fmt="o", capsize=3)
        axis.set_title(column, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(list(positions), [str(row["variant"]) for row in rows])
    _save(figure, path, title)


def lines(rows: Sequence[Mapping[str, Any]], x: Sequence[float], path: Path, title: str) -> None:
    """Draw a panel per state and scale, with a line per method through the columns named by x."""
    panels = list(dict.fromkeys((row["state"], row["scale"]) for row in rows))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (state, scale) in zip(axes[0], panels, strict=True):
        for row in rows:
            if (row["state"], row["scale"]) == (state, scale):
                axis.plot(x, [row[str(t)] for t in x], marker=".", label=row["method"])
        axis.set_title(f"{state}, scale {scale}", fontsize=9)
        axis.set_xlabel("t / T")
        axis.axhline(0, color="black", linewidth=0.5)
    axes[0, -1].legend(fontsize=7)
    _save(figure, path, title)


def _save(figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
