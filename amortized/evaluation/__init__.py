"""Evaluation: render a corpus, judge it by CLIP and by ground truth, and show it on one page."""

from amortized.evaluation.clip import ClipScorer, load_clip
from amortized.evaluation.evaluator import EvaluationConfig, evaluate
from amortized.evaluation.report import write_results
from amortized.evaluation.results import PromptRow, Results, merge_rows, summarize, summary

__all__ = [
    "ClipScorer",
    "EvaluationConfig",
    "PromptRow",
    "Results",
    "evaluate",
    "load_clip",
    "merge_rows",
    "summarize",
    "summary",
    "write_results",
]
