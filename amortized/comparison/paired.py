"""Paired differences: the mean over the prompts that two evaluations share, with a bootstrap interval.

The two scores of a prompt differ much less than those of two prompts, so a paired difference is clear with
far fewer prompts than two separate means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from amortized.comparison.evaluations import Evaluated
from amortized.evaluation.metrics import Interval, bootstrap_interval
from amortized.evaluation.results import COMPARED, PromptRow, plain
from amortized.pages.markup import one_line
from amortized.wording import count

LOWER_IS_BETTER = ("color_error", "janus")
# Settings that do not change a score.
INESSENTIAL = {
    "allow_network",
    "turntable_frames",
    "turntable_size",
    "turntable_fps",
    "objects",
    "show_truth",
    "prompts_per_batch",
    "views_per_render",
    "seed",
}
Verdict = Literal["better", "worse", "unclear"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of an evaluation minus that of the first one, over the prompts that have both."""

    first: float  # means over these prompts
    other: float
    interval: Interval  # of the difference
    verdict: Verdict  # unclear: the interval includes 0, or there is none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that the page shows."""

    runs: tuple[Evaluated, ...]
    texts: tuple[str, ...]  # of all prompts: those of the first run in its order, then others
    metrics: tuple[str, ...]  # that any run has
    differences: tuple[Mapping[str, Difference], ...]  # by metric, for each run after the first
    other_settings: tuple[str, ...]  # in which the evaluations differ, and which change scores

    @property
    def shared(self) -> int:
        """Number of prompts that all runs have."""
        return sum(all(text in run.rows for run in self.runs) for text in self.texts)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        runs = [
            {
                "label": run.label,
                "folder": str(run.folder),
                "prompts": len(run.rows),
                "provenance": run.provenance,
            }
            for run in self.runs
        ]
        differences = [
            {"run": run.label, "minus": self.runs[0].label, "scores": {n: asdict(d) for n, d in some.items()}}
            for run, some in zip(self.runs[1:], self.differences, strict=True)
        ]
        counts = {"prompts": len(self.texts), "in_all_runs": self.shared}
        return plain(
            {"runs": runs, **counts, "differences": differences, "other_settings": list(self.other_settings)}
        )


def compare(runs: Sequence[Evaluated], seed: int = 0) -> Comparison:
    """Compare evaluations with the first one. `seed` is that of the bootstrap."""
    texts = dict.fromkeys(text for run in runs for text in run.rows)
    metrics = tuple(
        name
        for name in COMPARED
        if any(score(row, name) is not None for run in runs for row in run.rows.values())
    )
    return Comparison(
        runs=tuple(runs),
        texts=tuple(texts),
        metrics=metrics,
        differences=tuple(_differences(runs[0], run, metrics, seed) for run in runs[1:]),
        other_settings=_other_settings(runs),
    )


def score(row: PromptRow | None, name: str) -> float | None:
    """A score of a prompt; None if it does not apply, or is undefined."""
    value = None if row is None else getattr(row, name)
    return value if value is not None and math.isfinite(value) else None


def _differences(
    first: Evaluated, other: Evaluated, metrics: Sequence[str], seed: int
) -> dict[str, Difference]:
    found = {}
    for name in metrics:
        pairs = [(score(row, name), score(other.rows.get(text), name)) for text, row in first.rows.items()]
        whole = [(a, b) for a, b in pairs if a is not None and b is not None]
        if whole:
            interval = bootstrap_interval([b - a for a, b in whole], seed=seed)
            found[name] = Difference(
                first=sum(a for a, _ in whole) / len(whole),
                other=sum(b for _, b in whole) / len(whole),
                interval=interval,
                verdict=_verdict(interval, name),
            )
    return found


def _verdict(interval: Interval, name: str) -> Verdict:
    if not (interval.low > 0 or interval.high < 0):  # NaN too: a single prompt has no interval
        return "unclear"
    return "better" if (interval.low > 0) != (name in LOWER_IS_BETTER) else "worse"


def _other_settings(runs: Sequence[Evaluated]) -> tuple[str, ...]:
    """The settings that change scores and in which the evaluations differ, with their values."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in INESSENTIAL)
    columns = {key: [run.settings.get(key) for run in runs] for key in keys}
    columns["texts for recall@1"] = [run.gallery for run in runs]
    return tuple(
        one_line(f"{key}: {', '.join(str(value)[:100] for value in values)}")
        for key, values in columns.items()
        if any(value != values[0] for value in values)
    )


def summary(comparison: Comparison) -> str:
    """The differences as text."""
    lines = []
    first = comparison.runs[0].label
    for run, some in zip(comparison.runs[1:], comparison.differences, strict=True):
        lines.append(f"{run.label} minus {first}:")
        for name, difference in some.items():
            interval = difference.interval
            bounds = f"[{interval.low:+.4f}, {interval.high:+.4f}]" if interval.n > 1 else ""
            lines.append(
                f"  {name:<18} {interval.mean:+7.4f}   {bounds:<20} {count(interval.n, 'prompt')}, "
                f"{difference.verdict}"
            )
        if not some:
            lines.append("  no prompt in common")
    if apart := len(comparison.texts) - comparison.shared:
        lines.append(f"not in all runs: {count(apart, 'prompt')}, left out of the differences of those runs")
    if comparison.other_settings:
        lines.append(f"evaluated with different settings: {'; '.join(comparison.other_settings)}")
    return "\n".join(lines)
