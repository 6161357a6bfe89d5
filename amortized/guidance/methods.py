"""The named methods: one line each, a choice of parts.

Every method's gradient with respect to the latents is w(t) * (target - reference). The methods
differ in where the noise comes from, when the reference looks (t'), and what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from amortized.guidance.config import GuidanceConfig
from amortized.guidance.noise import NoiseSource, gaussian_noise
from amortized.guidance.scores import ConditionalAtReference, GuidedScore, NullScore, Score, TrueNoise
from amortized.guidance.timesteps import LaterTime, ReferenceTime, same_time


@dataclass(frozen=True, kw_only=True)
class Method:
    """Four of the five parts of a method; the fifth, w(t), is in `amortized.guidance.weights`."""

    noise: NoiseSource
    reference_time: ReferenceTime
    target: Score
    reference: Score


def asd(config: GuidanceConfig) -> Method:
    """Asynchronous score distillation (ScaleDreamer, arXiv 2407.02040).

    target e_u + s(e_c - e_u) at t, reference e_c at t' >= t under the same noise: a frozen model
    errs less at later times, so looking later replaces the fine-tuned reference of VSD.
    With shift_eta = 0 and without perp-neg this is (s - 1)(e_c - e_u), CSD at scale s - 1.
    """
    later = LaterTime(eta=config.shift_eta, random=config.shift_random)
    return Method(
        noise=gaussian_noise, reference_time=later, target=GuidedScore(), reference=ConditionalAtReference()
    )


def csd(config: GuidanceConfig) -> Method:
    """Classifier score distillation (arXiv 2310.19415): s(e_c - e_u), the null as reference.

    SDS without its (e_u - noise) term. ASD at shift_eta = 0 and scale s + 1, without perp-neg.
    """
    return Method(noise=gaussian_noise, reference_time=same_time, target=GuidedScore(), reference=NullScore())


def sds(config: GuidanceConfig) -> Method:
    """Score distillation sampling (DreamFusion, arXiv 2209.14988, eq. 3): e_u + s(e_c - e_u) - noise."""
    return Method(noise=gaussian_noise, reference_time=same_time, target=GuidedScore(), reference=TrueNoise())


METHODS: dict[str, Callable[[GuidanceConfig], Method]] = {"asd": asd, "csd": csd, "sds": sds}
