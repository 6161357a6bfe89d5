"""Score distillation: noise source x reference x (t, t') x weight x CFG pair, and named methods."""

from amortized.guidance.building import build_guidance, check_guidance
from amortized.guidance.config import GuidanceConfig, LearnedConfig, published
from amortized.guidance.costs import calls_per_image, queries_per_image
from amortized.guidance.distillation import Guidance, GuidanceOutput, surrogate
from amortized.guidance.draws import GuidanceDraws
from amortized.guidance.learned import LearnedReference, build_learned
from amortized.guidance.method_table import METHODS
from amortized.guidance.methods import build_method
from amortized.guidance.scores import Score

__all__ = [
    "METHODS",
    "Guidance",
    "GuidanceConfig",
    "GuidanceDraws",
    "GuidanceOutput",
    "LearnedConfig",
    "LearnedReference",
    "Score",
    "build_guidance",
    "build_learned",
    "build_method",
    "calls_per_image",
    "check_guidance",
    "published",
    "queries_per_image",
    "surrogate",
]
