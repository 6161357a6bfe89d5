"""The random draws of a batch, as pure functions of (seed, step), and the batch itself.

A step has `world size x gradient accumulation x prompts per process` slots. A counter-based generator keyed
by (seed, step, slot) makes all draws of a slot: the global batch does not depend on how slots are assigned to
ranks, and a resumed run needs no saved RNG state. It needs only the step and the number of prompts seen,
which is the position in the prompt order for any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortized.cameras import NUM_CAMERA_DRAWS, CameraConfig, cameras_from_uniform, jitter_cameras
from amortized.conditioning import ViewText
from amortized.config import Steps, step_at
from amortized.density_control import density_controlled
from amortized.generation import asset_seed, asset_z, z_width
from amortized.guidance import GuidanceDraws
from amortized.random import derive_seed, generator_for
from amortized.rendering import (
    NUM_LIGHT_DRAWS,
    BackgroundConfig,
    PointLightConfig,
    PointLights,
    background_from_uniform,
    point_lights,
)
from amortized.training.config import BaseRunConfig
from amortized.training.prompt_order import PromptOrder
from amortized.types import Cameras, TextCondition


@dataclass(frozen=True, kw_only=True)
class BatchDraws:
    """The random draws of one rank's part of a step: P prompts, V views each, B = P * V images."""

    prompt_indices: list[int]  # P
    cameras: Cameras  # [P, V]
    background: Tensor  # [P, V, 3]
    show_environment: Tensor  # [P, V] bool: which images show the scene's learned background, if it has one
    stratification: Tensor | None  # [P, V * H * W, S] in [0, 1); None: samples are at midpoints
    lights: PointLights | None  # None: no image is shaded by a point light
    guidance: GuidanceDraws  # B images
    more_guidance: tuple[GuidanceDraws, ...]  # of each further teacher, B images
    z: Tensor  # [P, z_dim] standard normal: the variation that the text leaves open
    digests: Tensor  # [P] int64: a digest of all draws of a slot


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """The draws and text of a batch, on the CPU."""

    draws: BatchDraws
    generator_text: TextCondition  # P prompts
    prior_text: ViewText  # B images
    more_prior_texts: tuple[ViewText, ...] = ()  # of each further teacher, B images


@dataclass(frozen=True, kw_only=True)
class BatchSampler:
    """The settings that determine every batch of a run."""

    seed: int
    order: PromptOrder
    steps: int  # of the run
    views: int
    render_size: Steps
    num_samples: int  # stratified samples per ray; 0: samples are at midpoints
    latent_shape: tuple[int, int, int]  # C, h, w
    more_latent_sizes: tuple[tuple[int, int, int], ...] = ()  # of each further teacher
    z_dim: int  # 0 if the generator takes no z
    seeds_per_prompt: int | None  # None: a new z at every visit
    cameras: CameraConfig
    background: BackgroundConfig
    point_light: PointLightConfig | None

    def draw(self, step: int, slots: Sequence[int], start: int) -> BatchDraws:
        """The given slots of a step, whose slot 0 is at position `start` of the prompt order.

        Rows are in the order of `slots`.
        """
        prompts = [self.order.at(start + slot) for slot in slots]
        rows = [self._draw_slot(step, slot) for slot in slots]
        stacked = _stacked(rows)
        more_rows = [
            [self._draw_teacher(step, slot, number) for slot in slots]
            for number in range(len(self.more_latent_sizes))
        ]
        digests = [
            _digest(index, *(each[name] for each in row for name in _DIGESTED if name in each))
            for index, row in zip(prompts, zip(rows, *more_rows, strict=True), strict=True)
        ]
        seeds = stacked["seed"].repeat_interleave(self.views)
        prompts_of_images = torch.tensor(prompts).repeat_interleave(self.views)
        guidance, *more_guidance = (
            _guidance_draws(each, seeds, prompts_of_images) for each in (stacked, *map(_stacked, more_rows))
        )
        progress = step / self.steps
        cameras, lights = cameras_from_uniform(self.cameras, stacked["camera"], progress), None
        if self.cameras.jitter is not None:
            noise = stacked["camera_noise"]
            cameras = jitter_cameras(cameras, self.cameras.jitter, stacked["camera_jitter"], noise)
        if self.point_light is not None:
            noise = stacked["light_noise"]
            lights = point_lights(self.point_light, cameras, stacked["light"], noise, progress)
        return BatchDraws(
            prompt_indices=prompts,
            cameras=cameras,
            background=background_from_uniform(self.background, stacked["background"]),
            show_environment=stacked["show_environment"] < self.background.environment_share,
            stratification=stacked["stratification"] if self.num_samples else None,
            lights=lights,
            guidance=guidance,
            more_guidance=tuple(more_guidance),
            z=stacked["z"],
            digests=torch.tensor(digests, dtype=torch.int64),
        )

    def _draw_slot(self, step: int, slot: int) -> dict[str, Tensor]:
        random = generator_for(self.seed, "slot", step, slot)
        views, pixels = self.views, self.views * step_at(self.render_size, step / self.steps) ** 2
        keys = [derive_seed(self.seed, "image", step, slot, view) for view in range(views)]
        asset = derive_seed(self.seed, "asset", step, slot) % (self.seeds_per_prompt or 1)
        z = torch.randn(self.z_dim, generator=random)
        if self.seeds_per_prompt is not None:
            z = asset_z(self.seed, asset, self.z_dim)
        draws = {  # the order of the draws determines the random stream: append new ones at the end
            "camera": torch.rand(views, NUM_CAMERA_DRAWS, generator=random),
            "background": torch.rand(views, 3, generator=random),
            "timestep": torch.rand(views, generator=random),
            "shift": torch.rand(views, generator=random),
            "noise": torch.randn(views, *self.latent_shape, generator=random),
            "stratification": torch.rand(pixels, self.num_samples, generator=random),
            "z": z,
            "show_environment": torch.rand(views, generator=random),
            "learned": torch.rand(views, generator=random),
            "key": torch.tensor(keys),
            "seed": torch.tensor(asset_seed(self.seed, asset)),
        }
        if self.cameras.jitter is not None:
            draws["camera_jitter"] = torch.rand(views, 3, generator=random)
            draws["camera_noise"] = torch.randn(views, 6, generator=random)
        if self.point_light is not None:
            draws["light"] = torch.rand(views, NUM_LIGHT_DRAWS, generator=random)
            draws["light_noise"] = torch.randn(views, NUM_LIGHT_DRAWS, generator=random)
        return draws

    def _draw_teacher(self, step: int, slot: int, number: int) -> dict[str, Tensor]:
        """The draws of a further teacher, from a stream for itself: the others' draws do not change."""
        random, views = generator_for(self.seed, "teacher", number, step, slot), self.views
        keys = [derive_seed(self.seed, "teacher image", number, step, slot, view) for view in range(views)]
        return {
            "timestep": torch.rand(views, generator=random),
            "shift": torch.rand(views, generator=random),
            "noise": torch.randn(views, *self.more_latent_sizes[number], generator=random),
            "learned": torch.rand(views, generator=random),
            "key": torch.tensor(keys),
        }


def _stacked(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _guidance_draws(stacked: dict[str, Tensor], seeds: Tensor, prompts: Tensor) -> GuidanceDraws:
    """The draws of one guidance; seeds and prompts [B] are of the images."""
    return GuidanceDraws(
        u_timestep=stacked["timestep"].flatten(),
        u_shift=stacked["shift"].flatten(),
        u_learned=stacked["learned"].flatten(),
        noise=stacked["noise"].flatten(0, 1),
        keys=stacked["key"].flatten(),
        seeds=seeds,
        prompts=prompts,
    )


def build_sampler(
    config: BaseRunConfig,
    order: PromptOrder,
    generator: nn.Module,
    latent_sizes: Sequence[tuple[int, int, int]],
) -> BatchSampler:
    """The sampler of a run; `latent_sizes` are those of the prior and of each further teacher's."""
    trainer, renderer = config.trainer, config.renderer
    # Splats have no samples along rays.
    stratified = renderer.stratified is not False and not density_controlled(generator)
    return BatchSampler(
        seed=config.seed,
        order=order,
        steps=trainer.steps,
        views=trainer.views_per_prompt,
        render_size=trainer.render_size,
        num_samples=renderer.num_samples if stratified else 0,
        latent_shape=latent_sizes[0],
        more_latent_sizes=tuple(latent_sizes[1:]),
        z_dim=z_width(generator),
        seeds_per_prompt=trainer.seeds_per_prompt,
        cameras=config.cameras,
        background=config.background,
        point_light=renderer.point_light,
    )


def assign_slots(rank: int, world_size: int, num_parts: int, prompts: int) -> list[list[int]]:
    """The slots of one rank, one list per accumulation part.

    Slots are assigned in contiguous parts, rank after rank: part a of rank r starts at
    (a * world_size + r) * prompts. All ranks together cover each slot of a step exactly once.
    """
    starts = [(part * world_size + rank) * prompts for part in range(num_parts)]
    return [list(range(start, start + prompts)) for start in starts]


# The draws that the digest covers, of those that a run makes.
_DIGESTED = ("camera", "timestep", "shift", "noise", "z", "camera_jitter", "camera_noise", "light")
_DIGESTED += ("light_noise",)


def _digest(prompt_index: int, *draws: Tensor) -> int:
    state = hashlib.blake2b(str(prompt_index).encode(), digest_size=8)
    for draw in draws:
        state.update(draw.numpy().tobytes())
    return int.from_bytes(state.digest(), "little", signed=True)
