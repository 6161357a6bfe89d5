"""The noisy latents a step asks about: how their noise is chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from amortized.conditioning.views import ViewText, take_view_rows
from amortized.guidance.config import GuidanceDraws, InversionConfig, TrajectoryConfig
from amortized.guidance.scores import Branch, Denoiser, Guided, Step
from amortized.priors.base import Prior
from amortized.priors.schedule import add_noise, alphas_at, noise_to_x0, x0_to_noise
from amortized.random import normal
from amortized.transfer import to_device


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What a noise source starts from; B rows."""

    latents: Tensor  # [B, C, h, w]
    timesteps: Tensor  # [B] long, t, on the latents' device
    timesteps_reference: Tensor  # [B] long, t', likewise
    reference_on_host: Tensor  # t' on the CPU: how often to ask is decided without waiting for a device
    text: ViewText
    draws: GuidanceDraws


@dataclass(frozen=True, kw_only=True)
class Stride:
    """One DDIM step of those images that have not arrived yet."""

    node: int  # the timestep that the stride goes to, or passes
    images: tuple[int, ...]  # which of the batch
    times: tuple[int, ...]  # their timesteps before it
    rows: Tensor | None  # [N] long, `images` on the device; None where they are all
    now: Tensor  # [N] long, `times` on the device
    to: Tensor  # [N] long, timesteps after it


def plan_strides(start: int, targets: Tensor, nodes: Sequence[int], device: torch.device) -> list[Stride]:
    """The strides of images from timestep `start` by way of `nodes`, all up or all down, to `targets`.

    targets [B] are long, on the CPU. One copy to the device serves all strides.
    """
    beyond = torch.minimum if nodes and nodes[0] > start else torch.maximum
    now, planned = torch.full_like(targets, start), []
    for node in nodes:
        following = beyond(targets, torch.tensor(node))
        rows = (following != now).nonzero().flatten()
        if len(rows):
            planned.append((node, torch.stack([rows, now[rows], following[rows]])))
        now = following
    if not planned:
        return []
    sent = to_device(torch.cat([numbers for _, numbers in planned], dim=1), device)
    strides, place = [], 0
    for node, numbers in planned:
        there = sent[:, place : place + numbers.shape[1]]
        place += numbers.shape[1]
        images, times, _ = map(tuple, numbers.tolist())
        rows = None if len(images) == len(targets) else there[0]
        strides.append(Stride(node=node, images=images, times=times, rows=rows, now=there[1], to=there[2]))
    return strides


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Latents at two noise levels."""

    noisy: Tensor  # [B, C, h, w] at t
    noisy_reference: Tensor  # [B, C, h, w] at t'
    noise: Tensor  # [B, C, h, w] the noise in `noisy`
    inverted: Tensor | None = None  # [B, C, h, w] the prediction at t' on the way to t


class NoiseSource(Protocol):
    """Finds noise for clean latents; runs without gradients."""

    def __call__(self, denoiser: Denoiser, clean: Clean) -> Noised: ...

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        """Images [B] that it sends through the denoiser for one image each, given t'."""
        ...


class Gaussian:
    """The step's draw, the same one at both levels."""

    def __call__(self, denoiser: Denoiser, clean: Clean) -> Noised:
        return with_noise(denoiser.prior, clean, drawn_noise(clean))

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        return torch.zeros_like(timesteps_reference)


def drawn_noise(clean: Clean) -> Tensor:
    """The step's draw [B, C, h, w], in the type of the latents."""
    return to_device(clean.draws.noise, clean.latents.device).to(clean.latents.dtype)


def with_noise(prior: Prior, clean: Clean, noise: Tensor) -> Noised:
    """The same noise at t and t'."""

    def at(times: Tensor) -> Tensor:
        return add_noise(clean.latents, noise, alphas_at(prior.alphas_cumprod, times, clean.latents))

    return Noised(noisy=at(clean.timesteps), noisy_reference=at(clean.timesteps_reference), noise=noise)


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """The noise that the prior itself would have to start from, found by DDIM run backwards.

    From the latents with the noise of timestep 0, in strides, to t'; where t' is before t, one step more
    to t, whose prediction is kept. ISM (arXiv 2311.11284) inverts without text; SDI (arXiv 2405.15891)
    at a negative CFG scale and with a share of fresh noise, which keeps the total at its level (DDIM,
    arXiv 2010.02502, eq. 12). The null is the empty text, whatever the negative prompt.
    """

    config: InversionConfig
    goes_on: bool  # t' is before t

    def __call__(self, denoiser: Denoiser, clean: Clean) -> Noised:
        prior, target, text = denoiser.prior, clean.timesteps_reference, clean.text
        start = torch.zeros_like(target)
        abar = alphas_at(prior.alphas_cumprod, start, clean.latents)
        x = add_noise(clean.latents, drawn_noise(clean), abar)
        for stride in self._strides(clean, prior.num_timesteps):
            here = _picked(x, stride.rows)
            predicted = self._predict(denoiser, here, stride.now, text, stride.rows)
            fresh = None
            if self.config.eta > 0:
                fresh = self._fresh(clean, stride)
            moved = self._move(prior, here, predicted, stride.now, stride.to, fresh)
            x = _moved(x, stride.rows, moved)
        noisy, met = x, None
        if self.goes_on:
            met = self._predict(denoiser, x, target, text, None)
            noisy = ddim_step(prior, x, met, target, clean.timesteps)
        noise = x0_to_noise(clean.latents, noisy, alphas_at(prior.alphas_cumprod, clean.timesteps, x))
        return Noised(noisy=noisy, noisy_reference=x, noise=noise, inverted=met)

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        steps = -(-timesteps_reference // self._stride(num_timesteps)) + self.goes_on
        return steps * ((self.config.scale != 0) + (self.config.scale != 1))

    def _stride(self, num_timesteps: int) -> int:
        return max(int(self.config.stride * num_timesteps), 1)

    def _strides(self, clean: Clean, num_timesteps: int) -> list[Stride]:
        stride, targets = self._stride(num_timesteps), clean.reference_on_host
        nodes = range(stride, int(targets.max()) + stride, stride)
        return plan_strides(0, targets, nodes, clean.latents.device)

    def _fresh(self, clean: Clean, stride: Stride) -> Tensor:
        """New noise [N, C, h, w] of a stride, by the images' keys."""
        shape, keys = tuple(clean.latents.shape[1:]), clean.draws.keys.tolist()
        noise = [normal(shape, keys[image], "inversion", stride.node) for image in stride.images]
        return to_device(torch.stack(noise), clean.latents.device)

    def _predict(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, text: ViewText, rows: Tensor | None
    ) -> Tensor:
        """The prediction for x [N, C, h, w] at times [N], which are `rows` of the batch (None: all)."""
        asked, text = {}, text if rows is None else take_view_rows(text, rows)
        if self.config.scale != 1:
            asked["null"] = Branch(noisy=x, timesteps=times, text=text.empty)
        if self.config.scale != 0:
            asked["positive"] = Branch(noisy=x, timesteps=times, text=text.positive)
        found = denoiser(asked, rows)
        if len(found) == 1:
            return next(iter(found.values()))
        return found["null"] + self.config.scale * (found["positive"] - found["null"])

    def _move(
        self, prior: Prior, x: Tensor, predicted: Tensor, now: Tensor, to: Tensor, fresh: Tensor | None
    ) -> Tensor:
        if fresh is None:
            return ddim_step(prior, x, predicted, now, to)
        early, late = (alphas_at(prior.alphas_cumprod, times, x) for times in (now, to))
        variance = (1 - early) / (1 - late) * (1 - late / early)  # DDIM's, between the two levels
        share = self.config.eta * variance.sqrt()
        x0 = noise_to_x0(predicted, x, early)
        return late.sqrt() * x0 + (1 - late - share**2).sqrt() * predicted + share * fresh.to(x)


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """The noise that a deterministic trajectory from the asset's seed carries at t'.

    DDIM from pure noise, drawn from the seed alone, down to t' with the image's text; what is predicted
    there is the noise at t' and at t, put back onto the latents (DSD, arXiv 2412.06780). It does not
    depend on the latents. Assets of equal seed start from equal noise, whatever their prompt.

    With a cache, what is predicted at the steps' own times is asked once for each seed and text, and kept
    where the latents are. Results are the same up to the rounding of batches of other sizes.
    """

    config: TrajectoryConfig
    kept: dict[tuple[bytes, int], Tensor] = field(default_factory=dict)  # by seed and text, and time

    def __call__(self, denoiser: Denoiser, clean: Clean) -> Noised:
        prior, like = denoiser.prior, clean.latents
        shape, last = tuple(like.shape[1:]), prior.num_timesteps - 1
        # Views that are denoised together start from noise of their own, as the prior's samples do.
        starts = [(seed, row % prior.views_per_group) for row, seed in enumerate(clean.draws.seeds.tolist())]
        start = {key: self._start(shape, *key) for key in set(starts)}
        x = to_device(torch.stack([start[key] for key in starts]), like.device).to(like.dtype)
        names = _names(clean) if self.config.cache else []
        nodes = self._nodes(prior.num_timesteps)
        for stride in plan_strides(last, clean.reference_on_host, nodes, like.device):
            here = _picked(x, stride.rows)
            predicted = self._at_node(denoiser, here, clean, stride, names)
            x = _moved(x, stride.rows, ddim_step(prior, here, predicted, stride.now, stride.to))
        noise = self._predict(denoiser, x, clean.timesteps_reference, clean.text, None)
        return with_noise(prior, clean, noise)

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        before = torch.tensor([num_timesteps - 1, *self._nodes(num_timesteps)])
        steps = (before > timesteps_reference[:, None]).sum(1) + 1
        return steps * (1 if self.config.scale == 1 and num_negatives == 0 else 2 + num_negatives)

    def _at_node(
        self, denoiser: Denoiser, x: Tensor, clean: Clean, stride: Stride, names: list[bytes]
    ) -> Tensor:
        """The prediction for the x [N, C, h, w] of a stride; what the cache has is not asked again."""
        if not self.config.cache:
            return self._predict(denoiser, x, stride.now, clean.text, stride.rows)
        keys = [(names[image], time) for image, time in zip(stride.images, stride.times, strict=True)]
        new = {key: place for place, key in enumerate(keys) if key not in self.kept}
        if new:
            places = [*new.values()]
            both = torch.tensor([places, [stride.images[place] for place in places]])
            place, rows = to_device(both, x.device)
            predicted = self._predict(denoiser, x[place], stride.now[place], clean.text, rows)
            self.kept.update(zip(new, predicted, strict=True))
        return torch.stack([self.kept[key] for key in keys])

    def num_kept(self, lowest: int, num_timesteps: int) -> int:
        """Predictions kept at most for one seed and text, where t' never falls below `lowest`."""
        if not self.config.cache:
            return 0
        return sum(node > lowest for node in [num_timesteps - 1, *self._nodes(num_timesteps)])

    def _start(self, shape: tuple[int, ...], seed: int, view: int) -> Tensor:
        return normal(shape, seed, "trajectory", *((view,) if view else ()))

    def _nodes(self, num_timesteps: int) -> list[int]:
        """Timesteps between DDIM's steps, from the last one down; the lowest is below 0."""
        steps = range(1, self.config.num_steps + 1)
        return [num_timesteps - 1 - round(step * num_timesteps / self.config.num_steps) for step in steps]

    def _predict(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, text: ViewText, rows: Tensor | None
    ) -> Tensor:
        """The prediction for x [N, C, h, w] at times [N], which are `rows` of the batch (None: all)."""
        score = Guided(scale=self.config.scale)
        step = Step(
            noisy=x, timesteps=times, noisy_reference=x, timesteps_reference=times, noise=x,
            text=text if rows is None else take_view_rows(text, rows), guidance_scale=self.config.scale,
        )  # fmt: skip
        return score.combine(denoiser(score.branches(step), rows), step)


def _names(clean: Clean) -> list[bytes]:
    """Of each row's seed and text, 16 bytes; waits for the device."""
    texts, seeds = clean.text.positive.pooled.cpu().numpy(), clean.draws.seeds.tolist()
    return [
        hashlib.blake2b(seed.to_bytes(8, "little", signed=True) + text.tobytes(), digest_size=16).digest()
        for seed, text in zip(seeds, texts, strict=True)
    ]


def ddim_step(prior: Prior, x: Tensor, predicted: Tensor, now: Tensor, to: Tensor) -> Tensor:
    """x at timesteps `to` [B], on the line of the predicted noise; either direction (arXiv 2010.02502)."""
    early, late = (alphas_at(prior.alphas_cumprod, times, x) for times in (now, to))
    return add_noise(noise_to_x0(predicted, x, early), predicted, late)


def _picked(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _moved(x: Tensor, rows: Tensor | None, values: Tensor) -> Tensor:
    return values if rows is None else x.index_copy(0, rows, values)
