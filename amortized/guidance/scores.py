"""The two noise predictions whose difference teaches: the target's (a CFG pair) and the reference's.

A score names the branches it needs from the denoiser, then combines the answers. Branches of the
same name are one question: they are asked once, and all that can share a batch do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amortized.cameras import repeat_cameras, take_cameras
from amortized.conditioning.rows import concatenate_rows
from amortized.conditioning.views import ViewText
from amortized.priors.base import Prior
from amortized.types import Cameras, TextCondition


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One question to the denoiser: B noisy latents, their times and their texts."""

    noisy: Tensor  # [B, C, h, w]
    timesteps: Tensor  # [B] long
    text: TextCondition  # B rows
    adapted: bool = False  # asked with the prior's adapter


@dataclass(frozen=True, kw_only=True)
class LearnedText:
    """How to ask the learned model of the renders."""

    text: TextCondition  # B rows
    adapted: bool  # with the prior's adapter


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step knows before it asks the denoiser for target and reference; B rows everywhere."""

    noisy: Tensor  # [B, C, h, w] at t
    timesteps: Tensor  # [B] long, t
    noisy_reference: Tensor  # [B, C, h, w] at t'
    timesteps_reference: Tensor  # [B] long, t'
    noise: Tensor  # [B, C, h, w] in `noisy`
    text: ViewText
    guidance_scale: float
    inverted: Tensor | None = None  # [B, C, h, w] the prediction that an inversion met at t'
    learned: LearnedText | None = None

    def branch(self, text: TextCondition | LearnedText, *, at_reference: bool = False) -> Branch:
        """The question about this text at t, or at t'."""
        adapted = isinstance(text, LearnedText) and text.adapted
        return Branch(
            noisy=self.noisy_reference if at_reference else self.noisy,
            timesteps=self.timesteps_reference if at_reference else self.timesteps,
            text=text.text if isinstance(text, LearnedText) else text,
            adapted=adapted,
        )


class Score(Protocol):
    """A noise prediction [B, C, h, w] made of a few branches."""

    def branches(self, step: Step) -> Mapping[str, Branch]:
        """The questions, by name."""
        ...

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        """The score, from predictions [B, C, h, w] that hold at least the names asked for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598), with Perp-Neg where there are negatives.

        e_b + s * [ (e_y - e_b) + sum_i w_i * perp(e_i - e_b, e_y - e_b) ]

    e_y and e_i are the predictions for the positive and the i-th negative text, e_b that of the null.
    At s = 1 without negatives it is e_y alone, and e_b is not asked.
    """

    scale: float | None = None  # None: the step's
    at_reference: bool = False  # at t', instead of t
    negatives: bool = True
    learned_null: bool = False

    def branches(self, step: Step) -> dict[str, Branch]:
        texts: dict[str, TextCondition | LearnedText] = {"positive": step.text.positive}
        if not self._plain(step):
            texts |= {f"negative {i}": text for i, text in enumerate(self._negatives(step))}
            texts |= null_of(step, learned=self.learned_null)
        return {
            self._name(name): step.branch(text, at_reference=self.at_reference)
            for name, text in texts.items()
        }

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        positive = predictions[self._name("positive")]
        if self._plain(step):
            return positive
        null = predictions[self._name("learned" if self.learned_null else "null")]
        positive = positive - null
        direction = positive
        for i in range(len(self._negatives(step))):
            negative = predictions[self._name(f"negative {i}")] - null
            weight = step.text.negative_weights[i][:, None, None, None]
            direction = direction + weight * perpendicular(negative, positive)
        return null + self._scale(step) * direction

    def _scale(self, step: Step) -> float:
        return step.guidance_scale if self.scale is None else self.scale

    def _negatives(self, step: Step) -> tuple[TextCondition, ...]:
        return step.text.negatives if self.negatives else ()

    def _plain(self, step: Step) -> bool:
        return self._scale(step) == 1 and not self._negatives(step)

    def _name(self, text: str) -> str:
        return f"{text} at t'" if self.at_reference else text


class TrueNoise:
    """The noise in x_t: the reference of SDS, which knows nothing of any image."""

    def branches(self, step: Step) -> dict[str, Branch]:
        return {}

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        return step.noise


class InvertedNoise:
    """What an inversion met at t': the reference of ISM. Free, as the noise source asked it anyway."""

    def branches(self, step: Step) -> dict[str, Branch]:
        return {}

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        assert step.inverted is not None, "no inversion"
        return step.inverted


@dataclass(frozen=True, kw_only=True)
class Null:
    """The prediction at t of the null, the prior's or a learned one, that CFG departs from.

    The reference of CSD, free as the target asks it anyway; and, learned with the prompt, of VSD.
    """

    learned: bool = False

    def branches(self, step: Step) -> dict[str, Branch]:
        return {name: step.branch(text) for name, text in null_of(step, learned=self.learned).items()}

    def combine(self, predictions: Mapping[str, Tensor], step: Step) -> Tensor:
        return predictions["learned" if self.learned else "null"]


def null_of(step: Step, *, learned: bool) -> dict[str, TextCondition | LearnedText]:
    """The null and its name: the prior's, or what is learned."""
    if not learned:
        return {"null": step.text.unconditional}
    assert step.learned is not None, "no learned model"
    return {"learned": step.learned}


class Denoiser:
    """A prior as one step asks it: all branches of a kind in one batch, and every image counted."""

    def __init__(self, prior: Prior, cameras: Cameras | None = None) -> None:
        """cameras [P, V] are those of the step's B = P * V images."""
        self.prior, self.cameras = prior, cameras
        self.num_images = 0

    def __call__(self, questions: Mapping[str, Branch], rows: Tensor | None = None) -> dict[str, Tensor]:
        """The predicted noise of every branch [N, C, h, w] about images `rows` of the step's (None: all)."""
        answers: dict[str, Tensor] = {}
        for adapted in (False, True):
            branches = {name: branch for name, branch in questions.items() if branch.adapted == adapted}
            if branches:
                answers |= dict(zip(branches, self._ask(list(branches.values()), adapted, rows), strict=True))
        return answers

    def _ask(self, branches: list[Branch], adapted: bool, rows: Tensor | None) -> tuple[Tensor, ...]:
        noisy = torch.cat([branch.noisy for branch in branches])
        self.num_images += len(noisy)
        cameras = self.cameras
        if cameras is not None and rows is not None:
            cameras = take_cameras(cameras, rows, self.prior.views_per_group)
        predicted = self.prior.predict_noise(
            noisy,
            torch.cat([branch.timesteps for branch in branches]),
            concatenate_rows([branch.text for branch in branches]),
            None if cameras is None else repeat_cameras(cameras, len(branches)),
            adapted=adapted,
        )
        return predicted.chunk(len(branches))


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x that is orthogonal to y, image by image; x itself where y is nearly zero."""
    dot = (x * y).flatten(1).sum(1)
    square = y.square().flatten(1).sum(1).clamp(min=1e-6)
    return x - (dot / square)[:, None, None, None] * y
