"""Scores: the noise predictions of target and reference, whose difference is the gradient.

A score names the denoiser queries it needs and combines their predictions. Queries of the same name are
equal: the denoiser runs them once, and all queries of a step in one batch.
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
from amortized.guidance.draws import GuidanceDraws
from amortized.priors.base import Prior
from amortized.types import Cameras, TextCondition


@dataclass(frozen=True, kw_only=True)
class LearnedText:
    """How to query the reference model: with this text, and with or without the prior's LoRA adapter."""

    text: TextCondition  # B rows
    adapted: bool


@dataclass(frozen=True, kw_only=True)
class DenoiserQuery:
    """One prediction of the denoiser: N noisy latents, their timesteps and their texts."""

    latents_noisy: Tensor  # [N, C, h, w]
    timesteps: Tensor  # [N] long
    condition: TextCondition | LearnedText  # N rows

    @property
    def text(self) -> TextCondition:
        return self.condition.text if isinstance(self.condition, LearnedText) else self.condition

    @property
    def adapted(self) -> bool:
        """Whether to query with the prior's LoRA adapter."""
        return isinstance(self.condition, LearnedText) and self.condition.adapted


@dataclass(frozen=True, kw_only=True)
class CleanBatch:
    """The input of a noise source: clean latents, the timesteps to noise them to, and texts; B rows."""

    latents: Tensor  # [B, C, h, w]
    timesteps: Tensor  # [B] long, t, on the latents' device
    timesteps_reference: Tensor  # [B] long, t', on the latents' device
    reference_on_host: Tensor  # [B] long, t' on the CPU: decides the number of calls without a device sync
    text: ViewText
    draws: GuidanceDraws
    guidance_scale: float = 1.0  # of this step
    learned: LearnedText | None = None  # how to query the reference model, if there is one


@dataclass(frozen=True, kw_only=True)
class NoisyBatch:
    """The output of a noise source: the batch with its latents at two noise levels, as scores query it."""

    clean: CleanBatch
    latents_noisy: Tensor  # [B, C, h, w] at t
    latents_noisy_reference: Tensor  # [B, C, h, w] at t'
    noise: Tensor  # [B, C, h, w] the noise in `latents_noisy`
    inverted: Tensor | None = None  # [B, C, h, w] the prediction that an inversion made at t'

    def query(self, condition: TextCondition | LearnedText, *, at_reference: bool = False) -> DenoiserQuery:
        """Return the query with this text at t, or at t'."""
        clean = self.clean
        return DenoiserQuery(
            latents_noisy=self.latents_noisy_reference if at_reference else self.latents_noisy,
            timesteps=clean.timesteps_reference if at_reference else clean.timesteps,
            condition=condition,
        )


class Score(Protocol):
    """A noise prediction [B, C, h, w] combined from a few queries."""

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        """Return the names of its queries; their number is the cost of the score."""
        ...

    def queries(self, batch: NoisyBatch) -> Mapping[str, DenoiserQuery]:
        """Return its queries by name."""
        ...

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        """Return the score [B, C, h, w] from predictions [B, C, h, w], at least those of its queries."""
        ...


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598); with negative texts, Perp-Neg (arXiv 2304.04968).

        e_b + s * [ (e_y - e_b) + sum_i w_i * perp(e_i - e_b, e_y - e_b) ]

    e_y and e_i are the predictions for the positive and the i-th negative text, e_b that for the null. With
    s = 1 and no negatives it is e_y alone, and e_b is not queried.
    """

    scale: float | None = None  # None: the step's guidance_scale
    at_reference: bool = False  # query at t' instead of t
    negatives: bool = True
    learned_null: bool = False

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        names = ["positive"]
        num_negatives = num_negatives if self.negatives else 0
        if not self._is_plain(guidance_scale, num_negatives):
            names += [self._null_name, *(f"negative {i}" for i in range(num_negatives))]
        return {self._name(name) for name in names}

    def queries(self, batch: NoisyBatch) -> dict[str, DenoiserQuery]:
        clean = batch.clean
        texts = self.texts(clean.text, clean.learned, clean.guidance_scale)
        return {
            self._name(name): batch.query(text, at_reference=self.at_reference)
            for name, text in texts.items()
        }

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        return self.mix(predictions, batch.clean.text, batch.clean.guidance_scale)

    def texts(
        self, text: ViewText, learned: LearnedText | None = None, guidance_scale: float = 1.0
    ) -> dict[str, TextCondition | LearnedText]:
        """Return the texts to query, by name without the timestep."""
        texts: dict[str, TextCondition | LearnedText] = {"positive": text.positive}
        negatives = self._negatives(text)
        if not self._is_plain(guidance_scale, len(negatives)):
            texts |= {f"negative {i}": negative for i, negative in enumerate(negatives)}
            texts |= null_text(text, learned, use_learned=self.learned_null)
        return texts

    def mix(self, predictions: Mapping[str, Tensor], text: ViewText, guidance_scale: float = 1.0) -> Tensor:
        """Return the CFG combination [B, C, h, w] of the predictions for `texts`."""
        positive = predictions[self._name("positive")]
        negatives = self._negatives(text)
        if self._is_plain(guidance_scale, len(negatives)):
            return positive
        null = predictions[self._name(self._null_name)]
        positive = positive - null
        direction = positive
        for i in range(len(negatives)):
            negative = predictions[self._name(f"negative {i}")] - null
            weight = text.negative_weights[i][:, None, None, None]
            direction = direction + weight * perpendicular(negative, positive)
        return null + self._scale(guidance_scale) * direction

    @property
    def _null_name(self) -> str:
        return "learned" if self.learned_null else "null"

    def _scale(self, guidance_scale: float) -> float:
        return guidance_scale if self.scale is None else self.scale

    def _negatives(self, text: ViewText) -> tuple[TextCondition, ...]:
        return text.negatives if self.negatives else ()

    def _is_plain(self, guidance_scale: float, num_negatives: int) -> bool:
        """Whether CFG reduces to the conditional prediction."""
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
        return batch.noise


class InvertedNoise:
    """The prediction that an inversion made at t': the reference of ISM. Costs no extra query."""

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        return set()

    def queries(self, batch: NoisyBatch) -> dict[str, DenoiserQuery]:
        return {}

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        assert batch.inverted is not None, "the noise source did not invert"
        return batch.inverted


@dataclass(frozen=True, kw_only=True)
class Null:
    """The prediction at t for the null of CFG: the prior's, or the reference model's.

    CSD's reference, which costs nothing because the target queries the null too; with a LoRA queried with
    the prompt, VSD's.
    """

    learned: bool = False

    def query_names(self, guidance_scale: float, num_negatives: int) -> set[str]:
        return {"learned" if self.learned else "null"}

    def queries(self, batch: NoisyBatch) -> dict[str, DenoiserQuery]:
        texts = null_text(batch.clean.text, batch.clean.learned, use_learned=self.learned)
        return {name: batch.query(text) for name, text in texts.items()}

    def combine(self, predictions: Mapping[str, Tensor], batch: NoisyBatch) -> Tensor:
        return predictions["learned" if self.learned else "null"]


def null_text(
    text: ViewText, learned: LearnedText | None, *, use_learned: bool
) -> dict[str, TextCondition | LearnedText]:
    """Return the null by its query name: the prior's, or the reference model's."""
    if not use_learned:
        return {"null": text.unconditional}
    assert learned is not None, "the null needs a reference model"
    return {"learned": learned}


class Denoiser:
    """The prior, queried in as few batches as possible, with a count of the images."""

    def __init__(self, prior: Prior, cameras: Cameras | None = None) -> None:
        """cameras [P, V] are those of the step's B = P * V images."""
        self.prior, self.cameras = prior, cameras
        self.num_images = 0

    def __call__(self, queries: Mapping[str, DenoiserQuery], rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the noise_pred [N, C, h, w] of each query, for images `rows` [N] of the step (None: all)."""
        predictions: dict[str, Tensor] = {}
        # One batch without the LoRA adapter and one with it: it is on or off for a whole batch.
        for adapted in (False, True):
            chosen = {name: query for name, query in queries.items() if query.adapted == adapted}
            if chosen:
                results = self._predict(list(chosen.values()), adapted, rows)
                predictions |= dict(zip(chosen, results, strict=True))
        return predictions

    def _predict(
        self, queries: list[DenoiserQuery], adapted: bool, rows: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the noise_pred [N, C, h, w] of each query, from one denoiser batch."""
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
    """Return the component of x [B, C, h, w] orthogonal to y, per image; x itself if y is nearly zero."""
    dot = (x * y).flatten(1).sum(1)
    square = y.square().flatten(1).sum(1).clamp(min=1e-6)
    return x - (dot / square)[:, None, None, None] * y
