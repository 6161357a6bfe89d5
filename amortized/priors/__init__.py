"""Frozen diffusion models that supervise a generator: the `Prior` protocol and its implementations."""

from amortized.priors.base import DTYPES, Prior, PriorConfig, fingerprint_of
from amortized.priors.gaussian_mixture import GaussianMixturePrior
from amortized.priors.loading import FolderPrior, load_prior, load_stable_diffusion
from amortized.priors.sampling import ddim, sample
from amortized.priors.stable_diffusion import StableDiffusionPrior
from amortized.priors.stable_diffusion_3 import StableDiffusion3Prior

__all__ = [
    "DTYPES",
    "FolderPrior",
    "GaussianMixturePrior",
    "Prior",
    "PriorConfig",
    "StableDiffusion3Prior",
    "StableDiffusionPrior",
    "ddim",
    "fingerprint_of",
    "load_prior",
    "load_stable_diffusion",
    "sample",
]
