"""Score distillation: noise source x reference x (t, t') x weight x CFG pair, and named choices of them."""

from amortized.guidance.config import GuidanceConfig, GuidanceDraws, LearnedConfig, published
from amortized.guidance.distillation import (
    Guidance,
    GuidanceOutput,
    Method,
    branches_per_image,
    calls_per_image,
    method_of,
    surrogate,
)
from amortized.guidance.learned import build_learned
from amortized.guidance.methods import METHODS
from amortized.guidance.noise import Clean, Noised, NoiseSource
from amortized.guidance.scores import Branch, Denoiser, Guided, Score, Step, perpendicular
from amortized.guidance.timesteps import draw_timesteps, share_in_groups, timestep_range
from amortized.guidance.weights import WEIGHTINGS

__all__ = [
    "METHODS",
    "WEIGHTINGS",
    "Branch",
    "Clean",
    "Denoiser",
    "Guidance",
    "GuidanceConfig",
    "GuidanceDraws",
    "GuidanceOutput",
    "Guided",
    "LearnedConfig",
    "Method",
    "NoiseSource",
    "Noised",
    "Score",
    "Step",
    "branches_per_image",
    "build_learned",
    "calls_per_image",
    "draw_timesteps",
    "method_of",
    "perpendicular",
    "published",
    "share_in_groups",
    "surrogate",
    "timestep_range",
]
