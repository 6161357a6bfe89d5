"""z, the variation that a text leaves open: which variant of a prompt's asset a generator makes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amortized.random import derive_seed, normal
from amortized.types import Prompt


def z_width(generator: nn.Module) -> int:
    """The width of the z that a generator takes, 0 if it takes none."""
    return int(getattr(generator, "z_dim", 0))  # type: ignore[arg-type]


def asset_seed(seed: int, number: int) -> int:
    """The seed of asset `number` of every prompt; z and the trajectory follow from it."""
    return derive_seed(seed, "asset", number)


def asset_z(seed: int, number: int, z_dim: int) -> Tensor:
    """z [z_dim] of asset `number` of every prompt."""
    return normal((z_dim,), asset_seed(seed, number), "z")


def z_of(
    prompts: Sequence[Prompt], z_dim: int, seed: int, seeds_per_prompt: int | None, number: int = 0
) -> Tensor:
    """z [P, z_dim] of variant `number` of each prompt, a function of the prompt's id and the seed.

    If training used a fixed set of `seeds_per_prompt` assets, variants are these assets.
    """
    if seeds_per_prompt is not None:
        return asset_z(seed, number % seeds_per_prompt, z_dim).expand(len(prompts), -1)
    key = ("z",) if number == 0 else ("z", number)
    return torch.stack([normal((z_dim,), seed, *key, prompt.id) for prompt in prompts])
