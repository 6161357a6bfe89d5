"""What a step trains on: prompts, cameras, backgrounds and noise, as pure functions of (seed, step).

A step has `world size x accumulation x prompts per process` slots. Everything random in a slot is
drawn from a generator keyed by (seed, step, slot), so that the global batch does not depend on how
slots are dealt to processes, and a resumed run needs no saved random state: its step, and how many
prompts it has seen, from where the order of prompts goes on with any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortized.cameras import NUM_CAMERA_DRAWS, CameraConfig, cameras_from_uniform
from amortized.guidance import GuidanceDraws
from amortized.random import derive_seed, generator_for, normal
from amortized.rendering import BackgroundConfig, background_from_uniform
from amortized.training.order import Order
from amortized.types import Cameras, Prompt


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One process's share of a step, or of one accumulation part of it: P prompts, V views each."""

    prompt_indices: list[int]  # P
    cameras: Cameras  # [P, V]
    background: Tensor  # [P, V, 3]
    own_background: Tensor  # [P, V] bool: which images show the scene's own, where it has one
    stratification: Tensor  # [P, V * H * W, S] in [0, 1)
    draws: GuidanceDraws  # B = P * V images
    z: Tensor  # [P, z_dim] standard normal: what of a scene the text leaves open
    digests: Tensor  # [P] int64: a digest of all of a slot's draws


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Settings that determine every batch of a run."""

    seed: int
    order: Order
    views: int
    render_size: int
    num_samples: int  # stratified samples a ray
    latent_shape: tuple[int, int, int]  # C, h, w
    z_dim: int  # 0 where the generator takes no z
    seeds_per_prompt: int | None  # None: a new z at every visit
    cameras: CameraConfig
    background: BackgroundConfig

    def batch(self, step: int, slots: Sequence[int], start: int) -> Batch:
        """The given slots of a step, whose slot 0 is at position `start` of the order of prompts.

        Rows are in the order of `slots`.
        """
        order = [self.order.at(start + slot) for slot in slots]
        rows = [self._draw(step, slot) for slot in slots]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        digests = [
            _digest(index, *(row[name] for name in ("camera", "timestep", "shift", "noise", "z")))
            for index, row in zip(order, rows, strict=True)
        ]
        return Batch(
            prompt_indices=order,
            cameras=cameras_from_uniform(self.cameras, stacked["camera"]),
            background=background_from_uniform(self.background, stacked["background"]),
            own_background=stacked["own_background"] < self.background.own_share,
            stratification=stacked["stratification"],
            draws=GuidanceDraws(
                u_timestep=stacked["timestep"].flatten(),
                u_shift=stacked["shift"].flatten(),
                u_learned=stacked["learned"].flatten(),
                noise=stacked["noise"].flatten(0, 1),
                keys=stacked["key"].flatten(),
                seeds=stacked["seed"].repeat_interleave(self.views),
                prompts=torch.tensor(order).repeat_interleave(self.views),
            ),
            z=stacked["z"],
            digests=torch.tensor(digests, dtype=torch.int64),
        )

    def _draw(self, step: int, slot: int) -> dict[str, Tensor]:
        random = generator_for(self.seed, "slot", step, slot)
        views, pixels = self.views, self.views * self.render_size**2
        keys = [derive_seed(self.seed, "image", step, slot, view) for view in range(views)]
        asset = derive_seed(self.seed, "asset", step, slot) % (self.seeds_per_prompt or 1)
        z = torch.randn(self.z_dim, generator=random)
        if self.seeds_per_prompt is not None:
            z = asset_z(self.seed, asset, self.z_dim)
        return {
            "camera": torch.rand(views, NUM_CAMERA_DRAWS, generator=random),
            "background": torch.rand(views, 3, generator=random),
            "timestep": torch.rand(views, generator=random),
            "shift": torch.rand(views, generator=random),
            "noise": torch.randn(views, *self.latent_shape, generator=random),
            "stratification": torch.rand(pixels, self.num_samples, generator=random),
            "z": z,
            "own_background": torch.rand(views, generator=random),
            "learned": torch.rand(views, generator=random),
            "key": torch.tensor(keys),
            "seed": torch.tensor(asset_seed(self.seed, asset)),
        }


def z_width(generator: nn.Module) -> int:
    """Width of the z that a generator takes; 0 where it takes none."""
    return int(getattr(generator, "z_dim", 0))  # type: ignore[arg-type]


def asset_seed(seed: int, number: int) -> int:
    """The seed of the assets of this number, of all prompts alike; z and trajectory follow from it."""
    return derive_seed(seed, "asset", number)


def asset_z(seed: int, number: int, z_dim: int) -> Tensor:
    """z [z_dim] of the assets of this number."""
    return normal((z_dim,), asset_seed(seed, number), "z")


def z_of(
    prompts: Sequence[Prompt], generator: nn.Module, seed: int, seeds_per_prompt: int | None, number: int = 0
) -> Tensor:
    """z [P, z_dim] of prompts outside training, the same at every look: that of asset `number` of those
    trained on, or of any number where every visit had a z of its own."""
    width = z_width(generator)
    if seeds_per_prompt is not None:
        return asset_z(seed, number % seeds_per_prompt, width).expand(len(prompts), -1)
    key = ("z",) if number == 0 else ("z", number)
    return torch.stack([normal((width,), seed, *key, prompt.id) for prompt in prompts])


def slots_of(rank: int, world_size: int, accumulation: int, prompts: int) -> list[list[int]]:
    """The slots of one process, one list per accumulation part.

    Slots are dealt in whole parts, rank after rank: part a of rank r starts at
    (a * world_size + r) * prompts. All processes together cover each slot of a step exactly once.
    """
    starts = [(part * world_size + rank) * prompts for part in range(accumulation)]
    return [list(range(start, start + prompts)) for start in starts]


def batch_digest(digests: Tensor) -> str:
    """16 hexadecimal digits of a global batch, whatever the order in which slots were dealt."""
    ordered = torch.sort(digests.cpu()).values
    return hashlib.blake2b(ordered.numpy().tobytes(), digest_size=8).hexdigest()


def _digest(prompt_index: int, *draws: Tensor) -> int:
    state = hashlib.blake2b(str(prompt_index).encode(), digest_size=8)
    for draw in draws:
        state.update(draw.numpy().tobytes())
    return int.from_bytes(state.digest(), "little", signed=True)
