"""Evaluation: render a corpus, score it with CLIP and against ground truth, and report it on one page."""

from amortized.evaluation.clip import ClipScorer, load_clip
from amortized.evaluation.evaluator import EvaluatedModel, EvaluationConfig, evaluate
from amortized.evaluation.gallery import Gallery
from amortized.evaluation.report import write_results
from amortized.evaluation.results import PromptRow, Results, merge_rows, summarize, summary

__all__ = [
    "ClipScorer",
    "EvaluatedModel",
    "EvaluationConfig",
    "Gallery",
    "PromptRow",
    "Results",
    "evaluate",
    "load_clip",
    "merge_rows",
    "summarize",
    "summary",
    "write_results",
]
