"""The settings of score distillation, and the random numbers a step reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from amortized.guidance.weights import WEIGHTINGS

METHOD_NAMES = ("asd", "csd", "sds")
NORMALIZATIONS = ("none", "per_sample")


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How a prior teaches. Pairs (start, end) run linearly over the training."""

    method: str = "asd"  # one of METHOD_NAMES
    guidance_scale: float | tuple[float, float] = 7.5  # a number, or (start, end)
    # Timesteps are uniform between two fractions of the diffusion time, both annealed.
    t_min: tuple[float, float] = (0.5, 0.02)
    t_max: tuple[float, float] = (0.98, 0.5)
    # ASD only: the reference looks up to this share of (t - t_min) later; 0 means at t itself.
    shift_eta: float = 0.1
    shift_random: bool = True  # a uniform part of that distance, or all of it
    weighting: str = "one_minus_alphas_cumprod"  # w(t), one of WEIGHTINGS
    weight: float = 1.0  # multiplies the loss
    normalize: str = "none"  # "per_sample": each image's latent gradient has norm 1 before `weight`

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("method", self.method, METHOD_NAMES),
            ("weighting", self.weighting, tuple(WEIGHTINGS)),
            ("normalize", self.normalize, NORMALIZATIONS),
        ):
            if value not in choices:
                raise ValueError(f"guidance.{name} must be one of {', '.join(choices)}, got '{value}'")
        scale = self.guidance_scale
        if not isinstance(scale, (int, float)) and len(scale) != 2:
            raise ValueError(f"guidance.guidance_scale must be a number or [start, end], got {list(scale)}")
        for low, high, when in zip(self.t_min, self.t_max, ("start", "end"), strict=True):
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"guidance.t_min and guidance.t_max must satisfy 0 <= t_min <= t_max <= 1 at the {when} "
                    f"of the run, got [{low}, {high}]"
                )
        if self.shift_eta < 0:
            raise ValueError(f"guidance.shift_eta must not be negative, got {self.shift_eta}")
        if self.weight < 0:
            raise ValueError(f"guidance.weight must not be negative, got {self.weight}")

    def scale_at(self, progress: float) -> float:
        """The guidance scale at progress in [0, 1]."""
        if isinstance(self.guidance_scale, (int, float)):
            return float(self.guidance_scale)
        return linear(self.guidance_scale, progress)


def linear(pair: tuple[float, float], progress: float) -> float:
    """From pair[0] to pair[1]; exact at both ends, constant outside [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    return (1 - progress) * pair[0] + progress * pair[1]


@dataclass(frozen=True, kw_only=True)
class GuidanceDraws:
    """The random numbers of one step, made outside so that they depend on (seed, step, image) alone.

    Any device and floating dtype. Where a prior denoises groups of views together, the group uses
    its first image's `u_timestep` and `u_shift`; noise is always each image's own.
    """

    u_timestep: Tensor  # [B] in [0, 1)
    u_shift: Tensor  # [B] in [0, 1)
    noise: Tensor  # [B, C, h, w] standard normal
