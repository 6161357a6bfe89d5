"""Evaluation: render a corpus, score it with CLIP and against ground truth, and report it on one page."""

from amortized.evaluation.clip import ClipScorer, load_clip
from amortized.evaluation.evaluator import EvaluatedModel, EvaluationConfig, Scorer, evaluate
from amortized.evaluation.gallery import Gallery
from amortized.evaluation.metrics import text_scores
from amortized.evaluation.report import write_results
from amortized.evaluation.results import PromptRow, Results, merge_rows, summarize, summary

__all__ = [
    "ClipScorer",
    "EvaluatedModel",
    "EvaluationConfig",
    "Gallery",
    "PromptRow",
    "Results",
    "Scorer",
    "evaluate",
    "load_clip",
    "merge_rows",
    "summarize",
    "summary",
    "text_scores",
    "write_results",
]
