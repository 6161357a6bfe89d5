"""What a scene shows where its object is not: backgrounds that are learned with it.

Around any generator, chosen by `environment.name`. Both colour a direction of sight and know nothing
of the camera's place. Without surroundings, images have the plain colours of the section `background`;
with them, `background.environment_share` of the training images show them and the others a plain colour,
which keeps objects from hiding in what is behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from amortized.encodings import (
    BiasFreeMLP,
    HashGrid,
    HashGridConfig,
    batched_mlp,
    num_mlp_weights,
    spherical_harmonics,
    split_mlp_weights,
)
from amortized.types import Scene, TextCondition


@dataclass(frozen=True, kw_only=True)
class HashEnvironmentConfig:
    """A hash grid over directions that all prompts share, read by a network that the text writes.

    The published grid's levels all have the same resolution by oversight; these grow.
    """

    name: Literal["hash"] = "hash"
    grid: HashGridConfig = field(
        default_factory=lambda: HashGridConfig(
            num_levels=8, log2_table_size=15, base_resolution=4, growth=1.5
        )
    )
    hidden: int = 64  # of each prompt's network
    hyper_hidden: int = 64

    def __post_init__(self) -> None:
        if min(self.hidden, self.hyper_hidden) < 1:
            raise ValueError(
                f"surroundings hidden and hyper_hidden must be at least 1, got {self.hidden} "
                f"and {self.hyper_hidden}"
            )

    def build(self, text_dim: int) -> nn.Module:
        """The untrained module, for text of width `text_dim`."""
        return HashEnvironment(self, text_dim)


@dataclass(frozen=True, kw_only=True)
class SHEnvironmentConfig:
    """A small network of spherical harmonics, the same for all prompts."""

    name: Literal["sh"] = "sh"
    num_bands: int = 3
    hidden: tuple[int, ...] = (16, 16)

    def __post_init__(self) -> None:
        if not 1 <= self.num_bands <= 4:
            raise ValueError(f"surroundings num_bands must lie in [1, 4], got {self.num_bands}")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"surroundings hidden widths must be at least 1, got {list(self.hidden)}")

    def build(self, text_dim: int) -> nn.Module:
        """The untrained module; `text_dim` is not read."""
        return SHEnvironment(self)


EnvironmentConfig = HashEnvironmentConfig | SHEnvironmentConfig


class HashEnvironment(nn.Module):
    """TextCondition to a map from directions [P, R, 3] to colours [P, R, 3] in (0, 1)."""

    def __init__(self, config: HashEnvironmentConfig, text_dim: int) -> None:
        super().__init__()
        self.grid = HashGrid(config.grid)
        self.widths = (config.grid.num_features, config.hidden, 3)
        last = nn.Linear(config.hyper_hidden, num_mlp_weights(self.widths))
        with torch.no_grad():
            nn.init.xavier_normal_(last.weight)
            nn.init.zeros_(last.bias)
            last.weight[-config.hidden * 3 :] *= 0.01  # mid-grey at first
        first = nn.Linear(text_dim, config.hyper_hidden, bias=False)
        self.hypernet = nn.Sequential(first, nn.LayerNorm(config.hyper_hidden), nn.SiLU(), last)

    def forward(self, text: TextCondition) -> Callable[[Tensor], Tensor]:
        dtype = self.grid.table.dtype
        flat = self.hypernet(text.pooled.to(dtype)).to(dtype)
        return partial(self._colours, weights=split_mlp_weights(flat, self.widths))

    def _colours(self, directions: Tensor, weights: list[Tensor]) -> Tensor:
        return torch.sigmoid(batched_mlp(self.grid(0.5 * directions + 0.5), weights))


class SHEnvironment(nn.Module):
    """TextCondition, unread, to a map from directions [P, R, 3] to colours [P, R, 3] in (0, 1)."""

    def __init__(self, config: SHEnvironmentConfig) -> None:
        super().__init__()
        self.num_bands = config.num_bands
        self.head = BiasFreeMLP((config.num_bands**2, *config.hidden, 3))

    def forward(self, text: TextCondition) -> Callable[[Tensor], Tensor]:
        return self._colours

    def _colours(self, directions: Tensor) -> Tensor:
        return torch.sigmoid(self.head(spherical_harmonics(directions, self.num_bands)))


class WithEnvironment(nn.Module):
    """A generator and surroundings, trained together: text and z to a scene with a background."""

    def __init__(self, generator: nn.Module, surroundings: nn.Module) -> None:
        super().__init__()
        self.generator, self.surroundings = generator, surroundings
        self.z_dim = getattr(generator, "z_dim", 0)

    def forward(self, text: TextCondition, z: Tensor | None = None) -> EnvironmentScene:
        return EnvironmentScene(self.generator(text, z), self.surroundings(text))


@dataclass(frozen=True, eq=False)
class EnvironmentScene:
    """A `Scene` with a background of its own."""

    scene: Scene
    background: Callable[[Tensor], Tensor]  # colours [P, R, 3] seen along unit directions [P, R, 3]

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball that holds the object."""
        return self.scene.bounding_radius

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance [P, N] at points [P, N, 3]."""
        return self.scene.sdf(points)

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [P, N] and albedo [P, N, 3], from one field evaluation."""
        return self.scene.sdf_and_albedo(points)
