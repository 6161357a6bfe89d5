"""Diffusion models as teachers: what they offer, and those that offer it."""

from amortized.priors.base import DTYPES, Prior, PriorConfig, fingerprint_of
from amortized.priors.gaussian_mixture import GaussianMixturePrior
from amortized.priors.sampling import ddim, sample
from amortized.priors.schedule import (
    add_noise,
    alphas_at,
    noise_to_velocity,
    noise_to_x0,
    scaled_linear_alphas_cumprod,
    velocity_to_noise,
    velocity_to_x0,
    x0_to_noise,
    x0_to_velocity,
)
from amortized.priors.stable_diffusion import StableDiffusionPrior, load_prior, load_stable_diffusion

__all__ = [
    "DTYPES",
    "GaussianMixturePrior",
    "Prior",
    "PriorConfig",
    "StableDiffusionPrior",
    "add_noise",
    "alphas_at",
    "ddim",
    "fingerprint_of",
    "load_prior",
    "load_stable_diffusion",
    "noise_to_velocity",
    "noise_to_x0",
    "sample",
    "scaled_linear_alphas_cumprod",
    "velocity_to_noise",
    "velocity_to_x0",
    "x0_to_noise",
    "x0_to_velocity",
]
