"""Score distillation: a method is a choice of timesteps, noise source, CFG pair, reference and weight."""

from amortized.guidance.building import build_guidance, check_guidance
from amortized.guidance.config import GuidanceConfig, method_name, published
from amortized.guidance.costs import calls_per_image, queries_per_image
from amortized.guidance.distillation import Guidance, GuidanceOutput
from amortized.guidance.draws import GuidanceDraws
from amortized.guidance.learned import AdaptedPrior
from amortized.guidance.method_table import METHODS

__all__ = [
    "METHODS",
    "AdaptedPrior",
    "Guidance",
    "GuidanceConfig",
    "GuidanceDraws",
    "GuidanceOutput",
    "build_guidance",
    "calls_per_image",
    "check_guidance",
    "method_name",
    "published",
    "queries_per_image",
]
