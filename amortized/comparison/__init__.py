"""Comparison: the same prompts of several evaluations side by side, and paired differences, on one page."""

from amortized.comparison.evaluations import MAX_RUNS, Evaluated, read_evaluations
from amortized.comparison.paired import COMPARED, Comparison, compare, summary
from amortized.comparison.report import write_comparison

__all__ = [
    "COMPARED",
    "MAX_RUNS",
    "Comparison",
    "Evaluated",
    "compare",
    "read_evaluations",
    "summary",
    "write_comparison",
]
