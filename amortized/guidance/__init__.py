"""Score distillation: noise source x reference x (t, t') x weight x CFG pair, and named choices of them."""

from amortized.guidance.config import METHOD_NAMES, GuidanceConfig, GuidanceDraws
from amortized.guidance.distillation import Guidance, GuidanceOutput, ask, surrogate
from amortized.guidance.methods import METHODS, Method
from amortized.guidance.noise import NoisedLatents, NoiseSource, gaussian_noise
from amortized.guidance.scores import (
    Branch,
    ConditionalAtReference,
    GuidedScore,
    NullScore,
    Score,
    Step,
    TrueNoise,
    perpendicular,
)
from amortized.guidance.timesteps import (
    LaterTime,
    ReferenceTime,
    draw_timesteps,
    same_time,
    share_in_groups,
    timestep_range,
)
from amortized.guidance.weights import WEIGHTINGS

__all__ = [
    "METHODS",
    "METHOD_NAMES",
    "WEIGHTINGS",
    "Branch",
    "ConditionalAtReference",
    "Guidance",
    "GuidanceConfig",
    "GuidanceDraws",
    "GuidanceOutput",
    "GuidedScore",
    "LaterTime",
    "Method",
    "NoiseSource",
    "NoisedLatents",
    "NullScore",
    "ReferenceTime",
    "Score",
    "Step",
    "TrueNoise",
    "ask",
    "draw_timesteps",
    "gaussian_noise",
    "perpendicular",
    "same_time",
    "share_in_groups",
    "surrogate",
    "timestep_range",
]
