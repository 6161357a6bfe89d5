"""Scores: the two noise predictions whose difference is the gradient, of the target and of the reference.

A score names the queries it needs and combines their answers. Queries with the same name are the same: the
denoiser answers them once, and all queries of a step in one batch.
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
class DenoiserQuery:
    """One prediction to ask the denoiser for: B noisy latents, their timesteps, their texts."""

    latents_noisy: Tensor  # [B, C, h, w]
    timesteps: Tensor  # [B] long
    text: TextCondition  # B rows
    adapted: bool = False  # with the prior's LoRA adapter


@dataclass(frozen=True, kw_only=True)
class LearnedText:
    """How to query the reference model: this text, with or without the prior's adapter."""

    text: TextCondition  # B rows
    adapted: bool


@dataclass(frozen=True, kw_only=True)
class NoisyLatents:
    """Latents at two noise levels, from a noise source."""

    latents_noisy: Tensor  # [B, C, h, w] at t
    latents_noisy_reference: Tensor  # [B, C, h, w] at t'
    noise: Tensor  # [B, C, h, w] the noise in `latents_noisy`
    inverted: Tensor | None = None  # [B, C, h, w] the prediction that an inversion made at t'


@dataclass(frozen=True, kw_only=True)
class NoisyBatch:
    """Everything that the scores of a step depend on; B rows everywhere."""

    noisy: NoisyLatents
    timesteps: Tensor  # [B] long, t
    timesteps_reference: Tensor  # [B] long, t'
    text: ViewText
    guidance_scale: float
    learned: LearnedText | None = None  # how to query the reference model, if there is one

    def query(self, text: TextCondition | LearnedText, *, at_reference: bool = False) -> DenoiserQuery:
        """The query with this text at t, or at t'."""
        noisy = self.noisy
        return DenoiserQuery(
            latents_noisy=noisy.latents_noisy_reference if at_reference else noisy.latents_noisy,
            timesteps=self.timesteps_reference if at_reference else self.timesteps,
            text=text.text if isinstance(text, LearnedText) else text,
            adapted=isinstance(text, LearnedText) and text.adapted,
        )


class Score(Protocol):
    """A noise prediction [B, C, h, w] combined from a few queries."""

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        """The names of its queries: how many there are is the cost of the score."""
        ...

    def queries(self, batch: NoisyBatch) -> Mapping[str, DenoiserQuery]:
        """Its queries, by name."""
        ...

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        """The score, from predictions [B, C, h, w] that include those of its queries."""
        ...


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598), with Perp-Neg if there are negative texts.

        e_b + s * [ (e_y - e_b) + sum_i w_i * perp(e_i - e_b, e_y - e_b) ]

    e_y and e_i are the predictions for the positive and the i-th negative text, e_b that for the null. With
    s = 1 and no negatives it is e_y alone, and e_b is not queried.
    """

    scale: float | None = None  # None: the step's
    at_reference: bool = False  # at t' instead of t
    negatives: bool = True
    learned_null: bool = False

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        names = ["positive"]
        num_negatives = num_negatives if self.negatives else 0
        if not self._is_plain(guidance_scale, num_negatives):
            names += [self._null_name, *(f"negative {i}" for i in range(num_negatives))]
        return {self._name(name) for name in names}

    def queries(self, batch: NoisyBatch) -> dict[str, DenoiserQuery]:
        texts: dict[str, TextCondition | LearnedText] = {"positive": batch.text.positive}
        negatives = self._negatives(batch)
        if not self._is_plain(batch.guidance_scale, len(negatives)):
            texts |= {f"negative {i}": text for i, text in enumerate(negatives)}
            texts |= null_text(batch, learned=self.learned_null)
        return {
            self._name(name): batch.query(text, at_reference=self.at_reference)
            for name, text in texts.items()
        }

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        positive = predictions[self._name("positive")]
        negatives = self._negatives(batch)
        if self._is_plain(batch.guidance_scale, len(negatives)):
            return positive
        null = predictions[self._name(self._null_name)]
        positive = positive - null
        direction = positive
        for i in range(len(negatives)):
            negative = predictions[self._name(f"negative {i}")] - null
            weight = batch.text.negative_weights[i][:, None, None, None]
            direction = direction + weight * perpendicular(negative, positive)
        return null + self._scale(batch.guidance_scale) * direction

    @property
    def _null_name(self) -> str:
        return "learned" if self.learned_null else "null"

    def _scale(self, guidance_scale: float) -> float:
        return guidance_scale if self.scale is None else self.scale

    def _negatives(self, batch: NoisyBatch) -> tuple[TextCondition, ...]:
        return batch.text.negatives if self.negatives else ()

    def _is_plain(self, guidance_scale: float, num_negatives: int) -> bool:
        return self._scale(guidance_scale) == 1 and num_negatives == 0

    def _name(self, text: str) -> str:
        return f"{text} at t'" if self.at_reference else text


class TrueNoise:
    """The noise in x_t: the reference of SDS."""

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        return set()

    def queries(self, batch: NoisyBatch) -> dict[str, DenoiserQuery]:
        return {}

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        return batch.noisy.noise


class InvertedNoise:
    """The prediction that an inversion made at t': the reference of ISM. Costs no query of its own."""

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        return set()

    def queries(self, batch: NoisyBatch) -> dict[str, DenoiserQuery]:
        return {}

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        assert batch.noisy.inverted is not None, "the noise source made no inversion"
        return batch.noisy.inverted


@dataclass(frozen=True, kw_only=True)
class Null:
    """The prediction at t for the null of CFG: the prior's, or the reference model's.

    The reference of CSD, which the target queries anyway; and, with a learned model that takes the prompt,
    of VSD.
    """

    learned: bool = False

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        return {"learned" if self.learned else "null"}

    def queries(self, batch: NoisyBatch) -> dict[str, DenoiserQuery]:
        return {name: batch.query(text) for name, text in null_text(batch, learned=self.learned).items()}

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        return predictions["learned" if self.learned else "null"]


def null_text(batch: NoisyBatch, *, learned: bool) -> dict[str, TextCondition | LearnedText]:
    """The null under its query name: the prior's, or the reference model's."""
    if not learned:
        return {"null": batch.text.unconditional}
    assert batch.learned is not None, "there is no reference model"
    return {"learned": batch.learned}


class Denoiser:
    """The prior as a step queries it: equal kinds of queries in one batch, and every image counted."""

    def __init__(self, prior: Prior, cameras: Cameras | None = None) -> None:
        """cameras [P, V] are those of the step's B = P * V images."""
        self.prior, self.cameras = prior, cameras
        self.num_images = 0

    def __call__(self, queries: Mapping[str, DenoiserQuery], rows: Tensor | None = None) -> dict[str, Tensor]:
        """The noise_pred [N, C, h, w] of every query, for images `rows` [N] of the step (None: all)."""
        predictions: dict[str, Tensor] = {}
        for adapted in (False, True):
            chosen = {name: query for name, query in queries.items() if query.adapted == adapted}
            if chosen:
                results = self._predict(list(chosen.values()), adapted, rows)
                predictions |= dict(zip(chosen, results, strict=True))
        return predictions

    def _predict(
        self, queries: list[DenoiserQuery], adapted: bool, rows: Tensor | None
    ) -> tuple[Tensor, ...]:
        latents_noisy = torch.cat([query.latents_noisy for query in queries])
        self.num_images += len(latents_noisy)
        cameras = self.cameras
        if cameras is not None and rows is not None:
            cameras = take_cameras(cameras, rows, self.prior.views_per_group)
        noise_pred = self.prior.predict_noise(
            latents_noisy,
            torch.cat([query.timesteps for query in queries]),
            concatenate_rows([query.text for query in queries]),
            None if cameras is None else repeat_cameras(cameras, len(queries)),
            adapted=adapted,
        )
        return noise_pred.chunk(len(queries))


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The component of x [B, ...] orthogonal to y, per image; x itself if y is nearly zero."""
    dot = (x * y).flatten(1).sum(1)
    square = y.square().flatten(1).sum(1).clamp(min=1e-6)
    return x - (dot / square)[:, None, None, None] * y
