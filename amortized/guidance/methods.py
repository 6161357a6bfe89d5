"""Methods: the noise source, target and reference that a config names."""

from __future__ import annotations

from dataclasses import dataclass

from amortized.guidance.config import GuidanceConfig
from amortized.guidance.noise import Gaussian, Inversion, NoiseSource, SeedTrajectory
from amortized.guidance.scores import Guided, InvertedNoise, Null, Score, TrueNoise


@dataclass(frozen=True, kw_only=True)
class Method:
    """The parts of a method that query the denoiser; its timesteps and weights are in the config."""

    noise: NoiseSource
    target: Score
    reference: Score


def build_method(config: GuidanceConfig) -> Method:
    """Build the parts that a config names."""
    learned_null = config.null == "learned"
    noises: dict[str, NoiseSource] = {
        "gaussian": Gaussian(),
        "inversion": Inversion(config=config.inversion, continue_to_t=config.shift == "earlier"),
        "seed": SeedTrajectory(config=config.trajectory),
    }
    references: dict[str, Score] = {
        "noise": TrueNoise(),
        "null": Null(learned=learned_null),
        "learned": Null(learned=True),
        "inverted": InvertedNoise(),
        "guided": Guided(
            scale=config.reference_scale,
            at_reference=config.shift != "none",
            negatives=config.reference_negatives,
            learned_null=learned_null,
        ),
    }
    return Method(
        noise=noises[config.noise],
        target=Guided(learned_null=learned_null),
        reference=references[config.reference],
    )
