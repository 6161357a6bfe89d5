"""Noise sources: drawn noise, DDIM inversion of the latents, or a trajectory from the asset's seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from amortized.conditioning.views import ViewText, take_view_rows
from amortized.guidance.config import InversionConfig, TrajectoryConfig
from amortized.guidance.scores import CleanBatch, Denoiser, DenoiserQuery, Guided, NoisyBatch
from amortized.priors.base import Prior
from amortized.priors.schedule import add_noise, alphas_at, noise_to_x0, x0_to_noise
from amortized.random import normal
from amortized.transfer import to_device


class NoiseSource(Protocol):
    """Adds noise to clean latents, at t and at t'; called under no_grad."""

    def __call__(self, denoiser: Denoiser, clean: CleanBatch) -> NoisyBatch: ...

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        """Return the number of denoiser images [B] it needs for each image, given t' [B]."""
        ...


# ---- DDIM in strides ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stride:
    """One DDIM step of the N images that have not reached their target yet."""

    node: int  # the timestep of the step; images whose target is nearer stop there
    images: tuple[int, ...]  # indices of the N images in the batch
    times: tuple[int, ...]  # their timesteps before the step
    rows: Tensor | None  # [N] long, `images` on the device; None if they are the whole batch
    now: Tensor  # [N] long, `times` on the device
    to: Tensor  # [N] long, timesteps after the step


def plan_strides(start: int, targets: Tensor, nodes: Sequence[int], device: torch.device) -> list[Stride]:
    """Plan the strides from timestep `start` via `nodes`, which ascend or descend, to `targets` [B].

    targets are long, on the CPU. The indices of all strides go to the device in one copy.
    """
    clip = torch.minimum if nodes and nodes[0] > start else torch.maximum
    now, planned = torch.full_like(targets, start), []
    for node in nodes:
        next_times = clip(targets, torch.tensor(node))
        rows = (next_times != now).nonzero().flatten()
        if len(rows):
            planned.append((node, torch.stack([rows, now[rows], next_times[rows]])))
        now = next_times
    if not planned:
        return []
    on_device = to_device(torch.cat([numbers for _, numbers in planned], dim=1), device)
    strides, offset = [], 0
    for node, numbers in planned:
        columns = on_device[:, offset : offset + numbers.shape[1]]
        offset += numbers.shape[1]
        images, times, _ = map(tuple, numbers.tolist())
        rows = None if len(images) == len(targets) else columns[0]
        strides.append(
            Stride(node=node, images=images, times=times, rows=rows, now=columns[1], to=columns[2])
        )
    return strides


def ddim_step(prior: Prior, x: Tensor, noise_pred: Tensor, now: Tensor, to: Tensor) -> Tensor:
    """Move x [N, C, h, w] from timesteps `now` [N] to `to` [N], up or down, along noise_pred [N, C, h, w].

    DDIM (arXiv 2010.02502, eq. 12) without fresh noise.
    """
    abar_now, abar_to = (alphas_at(prior.alphas_cumprod, times, x) for times in (now, to))
    return add_noise(noise_to_x0(noise_pred, x, abar_now), noise_pred, abar_to)


# ---- the sources -------------------------------------------------------------------------------------


class Gaussian:
    """The drawn noise, the same at t and at t'."""

    def __call__(self, denoiser: Denoiser, clean: CleanBatch) -> NoisyBatch:
        return with_noise(denoiser.prior, clean, drawn_noise(clean))

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        return torch.zeros_like(timesteps_reference)


def drawn_noise(clean: CleanBatch) -> Tensor:
    """Return the drawn noise [B, C, h, w] with the latents' device and dtype."""
    return to_device(clean.draws.noise, clean.latents.device).to(clean.latents.dtype)


def with_noise(prior: Prior, clean: CleanBatch, noise: Tensor) -> NoisyBatch:
    """Add the same noise [B, C, h, w] to the latents at t and at t'."""

    def noisy_at(times: Tensor) -> Tensor:
        return add_noise(clean.latents, noise, alphas_at(prior.alphas_cumprod, times, clean.latents))

    return NoisyBatch(
        clean=clean,
        latents_noisy=noisy_at(clean.timesteps),
        latents_noisy_reference=noisy_at(clean.timesteps_reference),
        noise=noise,
    )


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """DDIM inversion: the noise from which the prior itself would sample the latents.

    Noises the latents to timestep 0 and runs DDIM backwards in strides up to t'. If t' is earlier than t, it
    takes one more step to t and returns the prediction made for it. ISM (arXiv 2311.11284) inverts without
    text; SDI (arXiv 2405.15891) with a negative CFG scale and a fraction eta of fresh noise at constant total
    variance (DDIM, arXiv 2010.02502, eq. 12). The null is the empty text, whatever the negative prompt.
    """

    config: InversionConfig
    continue_to_t: bool  # t' is earlier than t

    def __call__(self, denoiser: Denoiser, clean: CleanBatch) -> NoisyBatch:
        prior, target, text = denoiser.prior, clean.timesteps_reference, clean.text
        start = torch.zeros_like(target)
        abar = alphas_at(prior.alphas_cumprod, start, clean.latents)
        x = add_noise(clean.latents, drawn_noise(clean), abar)
        for stride in self._strides(clean, prior.num_timesteps):
            moving = _take(x, stride.rows)
            noise_pred = self._predict(denoiser, moving, stride.now, text, stride.rows)
            fresh = self._fresh_noise(clean, stride) if self.config.eta > 0 else None
            x = _put(x, stride.rows, self._step(prior, moving, noise_pred, stride.now, stride.to, fresh))
        latents_noisy, inverted = x, None
        if self.continue_to_t:
            inverted = self._predict(denoiser, x, target, text, None)
            latents_noisy = ddim_step(prior, x, inverted, target, clean.timesteps)
        abar = alphas_at(prior.alphas_cumprod, clean.timesteps, x)
        return NoisyBatch(
            clean=clean,
            latents_noisy=latents_noisy,
            latents_noisy_reference=x,
            noise=x0_to_noise(clean.latents, latents_noisy, abar),
            inverted=inverted,
        )

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        steps = -(-timesteps_reference // self._stride(num_timesteps)) + self.continue_to_t
        return steps * ((self.config.scale != 0) + (self.config.scale != 1))

    def _stride(self, num_timesteps: int) -> int:
        """The longest step, in timesteps."""
        return max(int(self.config.stride * num_timesteps), 1)

    def _strides(self, clean: CleanBatch, num_timesteps: int) -> list[Stride]:
        stride, targets = self._stride(num_timesteps), clean.reference_on_host
        nodes = range(stride, int(targets.max()) + stride, stride)
        return plan_strides(0, targets, nodes, clean.latents.device)

    def _fresh_noise(self, clean: CleanBatch, stride: Stride) -> Tensor:
        """Draw fresh noise [N, C, h, w] for a stride, a function of the images' keys."""
        shape, keys = tuple(clean.latents.shape[1:]), clean.draws.keys.tolist()
        noise = [normal(shape, keys[image], "inversion", stride.node) for image in stride.images]
        return to_device(torch.stack(noise), clean.latents.device)

    def _predict(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, text: ViewText, rows: Tensor | None
    ) -> Tensor:
        """Return noise_pred [N, C, h, w] with CFG for x at `times` [N], rows [N] of the batch (None: all)."""
        queries, text = {}, text if rows is None else take_view_rows(text, rows)
        if self.config.scale != 1:
            queries["null"] = DenoiserQuery(latents_noisy=x, timesteps=times, condition=text.empty)
        if self.config.scale != 0:
            queries["positive"] = DenoiserQuery(latents_noisy=x, timesteps=times, condition=text.positive)
        predictions = denoiser(queries, rows)
        if len(predictions) == 1:
            return next(iter(predictions.values()))
        null, positive = predictions["null"], predictions["positive"]
        return null + self.config.scale * (positive - null)

    def _step(
        self, prior: Prior, x: Tensor, noise_pred: Tensor, now: Tensor, to: Tensor, fresh: Tensor | None
    ) -> Tensor:
        """Move x [N, C, h, w] from `now` [N] to `to` [N]; `fresh` [N, C, h, w] is mixed in if given."""
        if fresh is None:
            return ddim_step(prior, x, noise_pred, now, to)
        abar_now, abar_to = (alphas_at(prior.alphas_cumprod, times, x) for times in (now, to))
        # sigma is DDIM's, eq. 16, from the lower noise level to the higher one.
        variance = (1 - abar_now) / (1 - abar_to) * (1 - abar_to / abar_now)
        sigma = self.config.eta * variance.sqrt()
        x0 = noise_to_x0(noise_pred, x, abar_now)
        return abar_to.sqrt() * x0 + (1 - abar_to - sigma**2).sqrt() * noise_pred + sigma * fresh.to(x)


@dataclass(frozen=True, kw_only=True)
class SeedTrajectory:
    """The noise at t' on a deterministic trajectory that starts at the asset's seed (DSD, arXiv 2412.06780).

    Runs DDIM with the image's text from pure noise, a function of the seed alone, down to t', and adds the
    noise predicted there to the latents, at t' and at t. The noise does not depend on the latents. Assets of
    equal seeds start from equal noise, whatever their prompt.

    With a cache, each prediction at a node of the trajectory is made once per seed and text and stays on the
    device. Results are the same up to rounding, which depends on the batch size.
    """

    config: TrajectoryConfig
    cached: dict[tuple[bytes, int], Tensor] = field(default_factory=dict)  # by (seed and text, timestep)

    def __call__(self, denoiser: Denoiser, clean: CleanBatch) -> NoisyBatch:
        prior, latents = denoiser.prior, clean.latents
        shape, last = tuple(latents.shape[1:]), prior.num_timesteps - 1
        # Views that are denoised together start from different noise, as when the prior samples.
        starts = [(seed, row % prior.views_per_group) for row, seed in enumerate(clean.draws.seeds.tolist())]
        start = {key: self._start(shape, *key) for key in set(starts)}
        x = to_device(torch.stack([start[key] for key in starts]), latents.device).to(latents.dtype)
        names = _cache_keys(clean) if self.config.cache else []
        nodes = self._nodes(prior.num_timesteps)
        for stride in plan_strides(last, clean.reference_on_host, nodes, latents.device):
            moving = _take(x, stride.rows)
            noise_pred = self._predict_at_node(denoiser, moving, clean, stride, names)
            x = _put(x, stride.rows, ddim_step(prior, moving, noise_pred, stride.now, stride.to))
        noise = self._predict(denoiser, x, clean.timesteps_reference, clean.text, None)
        return with_noise(prior, clean, noise)

    def calls(self, timesteps_reference: Tensor, num_timesteps: int, num_negatives: int) -> Tensor:
        before = torch.tensor([num_timesteps - 1, *self._nodes(num_timesteps)])
        steps = (before > timesteps_reference[:, None]).sum(1) + 1
        return steps * (1 if self.config.scale == 1 and num_negatives == 0 else 2 + num_negatives)

    def _predict_at_node(
        self, denoiser: Denoiser, x: Tensor, clean: CleanBatch, stride: Stride, names: list[bytes]
    ) -> Tensor:
        """Return noise_pred [N, C, h, w] for the x [N, C, h, w] of a stride, from the cache if possible."""
        if not self.config.cache:
            return self._predict(denoiser, x, stride.now, clean.text, stride.rows)
        keys = [(names[image], time) for image, time in zip(stride.images, stride.times, strict=True)]
        missing = {key: row for row, key in enumerate(keys) if key not in self.cached}
        if missing:
            rows = [*missing.values()]
            indices = torch.tensor([rows, [stride.images[row] for row in rows]])
            row, images = to_device(indices, x.device)  # one copy for both
            noise_pred = self._predict(denoiser, x[row], stride.now[row], clean.text, images)
            self.cached.update(zip(missing, noise_pred, strict=True))
        return torch.stack([self.cached[key] for key in keys])

    def num_cached(self, lowest: int, num_timesteps: int) -> int:
        """Return the largest number of cached predictions per seed and text, if t' is at least `lowest`."""
        if not self.config.cache:
            return 0
        return sum(node > lowest for node in [num_timesteps - 1, *self._nodes(num_timesteps)])

    def _start(self, shape: tuple[int, ...], seed: int, view: int) -> Tensor:
        """Draw the noise [C, h, w] from which a trajectory starts."""
        return normal(shape, seed, "trajectory", *((view,) if view else ()))

    def _nodes(self, num_timesteps: int) -> list[int]:
        """Return the timestep after each DDIM step, descending; the last is below 0."""
        steps = range(1, self.config.num_steps + 1)
        return [num_timesteps - 1 - round(step * num_timesteps / self.config.num_steps) for step in steps]

    def _predict(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, text: ViewText, rows: Tensor | None
    ) -> Tensor:
        """Return noise_pred [N, C, h, w] with CFG for x at `times` [N], rows [N] of the batch (None: all)."""
        text = text if rows is None else take_view_rows(text, rows)
        score = Guided(scale=self.config.scale)
        queries = {
            name: DenoiserQuery(latents_noisy=x, timesteps=times, condition=condition)
            for name, condition in score.texts(text).items()
        }
        return score.mix(denoiser(queries, rows), text)


def _cache_keys(clean: CleanBatch) -> list[bytes]:
    """Return 16 bytes per row that identify its seed and text; syncs with the device."""
    texts, seeds = clean.text.positive.pooled.cpu().numpy(), clean.draws.seeds.tolist()
    return [
        hashlib.blake2b(seed.to_bytes(8, "little", signed=True) + text.tobytes(), digest_size=16).digest()
        for seed, text in zip(seeds, texts, strict=True)
    ]


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    """Return rows [N] of x [B, ...]; all for None."""
    return x if rows is None else x[rows]


def _put(x: Tensor, rows: Tensor | None, values: Tensor) -> Tensor:
    """Return x [B, ...] with rows [N] replaced by values [N, ...]; all for None."""
    return values if rows is None else x.index_copy(0, rows, values)
