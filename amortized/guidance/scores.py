"""The two noise predictions whose difference teaches: the target's (a CFG pair) and the reference's.

A score names the branches it needs from the denoiser, then combines the answers. Branches of the
same name are one question: they are asked once, and all of a step's go through the denoiser
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from amortized.conditioning.views import ViewText
from amortized.types import TextCondition

POSITIVE, NULL, POSITIVE_AT_REFERENCE = "positive", "null", "positive at t'"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step knows before it asks the denoiser; B rows everywhere."""

    noisy: Tensor  # [B, C, h, w] at t
    noisy_reference: Tensor  # [B, C, h, w] at t'
    noise: Tensor  # [B, C, h, w] in `noisy`
    timesteps: Tensor  # [B] long, t
    timesteps_reference: Tensor  # [B] long, t'
    text: ViewText
    guidance_scale: float


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One question to the denoiser: B noisy latents, their times and their texts."""

    noisy: Tensor  # [B, C, h, w]
    timesteps: Tensor  # [B] long
    text: TextCondition  # B rows


class Score(Protocol):
    """A noise prediction [B, C, h, w] made of a few branches."""

    def branches(self, step: Step) -> Mapping[str, Branch]:
        """The questions, by name."""
        ...

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """The score, from predictions [B, C, h, w] that hold at least the names asked for."""
        ...


class GuidedScore:
    """Classifier-free guidance at t (arXiv 2207.12598), with Perp-Neg where there are negatives.

        e_u + s * [ (e_c - e_u) + sum_i w_i * perp(e_i - e_u, e_c - e_u) ]

    e_c, e_u, e_i are the predictions for the positive, unconditional and i-th negative text.
    """

    def branches(self, step: Step) -> dict[str, Branch]:
        texts = {POSITIVE: step.text.positive, NULL: step.text.unconditional}
        texts |= {_negative(i): negative for i, negative in enumerate(step.text.negatives)}
        noisy, timesteps = step.noisy, step.timesteps
        return {name: Branch(noisy=noisy, timesteps=timesteps, text=text) for name, text in texts.items()}

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        null = predictions[NULL]
        positive = predictions[POSITIVE] - null
        direction = positive
        for i, weight in enumerate(step.text.negative_weights):
            negative = predictions[_negative(i)] - null
            direction = direction + weight[:, None, None, None] * perpendicular(negative, positive)
        return null + step.guidance_scale * direction


class TrueNoise:
    """The noise that was added: the reference of SDS, which knows nothing of any image."""

    def branches(self, step: Step) -> dict[str, Branch]:
        return {}

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        return step.noise


class NullScore:
    """The unconditional prediction at t: the reference of CSD. Free, as the target asks it anyway."""

    def branches(self, step: Step) -> dict[str, Branch]:
        return {NULL: Branch(noisy=step.noisy, timesteps=step.timesteps, text=step.text.unconditional)}

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        return predictions[NULL]


class ConditionalAtReference:
    """The plain conditional prediction at t', with the same positive text: the reference of ASD."""

    def branches(self, step: Step) -> dict[str, Branch]:
        return {
            POSITIVE_AT_REFERENCE: Branch(
                noisy=step.noisy_reference, timesteps=step.timesteps_reference, text=step.text.positive
            )
        }

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        return predictions[POSITIVE_AT_REFERENCE]


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x that is orthogonal to y, image by image; x itself where y is nearly zero."""
    dot = (x * y).flatten(1).sum(1)
    square = y.square().flatten(1).sum(1).clamp(min=1e-6)
    return x - (dot / square)[:, None, None, None] * y


def _negative(index: int) -> str:
    return f"negative {index}"
