"""Learned backgrounds, trained together with any generator and selected by `environment.name`.

Their color depends on the viewing direction, not on the camera position. Without an environment, backgrounds
are the plain colors of the section `background`. With one, a share `background.environment_share` of the
training images shows it; the others have plain colors, so that objects cannot blend into the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from amortized.config import check
from amortized.encodings import (
    MAX_BANDS,
    BiasFreeMLP,
    HashGrid,
    HashGridConfig,
    batched_mlp,
    num_mlp_weights,
    spherical_harmonics,
    split_mlp_weights,
)
from amortized.types import DensityScene, Scene, SplatScene, TextCondition
from generators.field import PerPrompt, colors_of, of_prompt


@dataclass(frozen=True, kw_only=True)
class HashEnvironmentConfig:
    """A hash grid over directions, shared by all prompts, and a per-prompt MLP from a hypernetwork.

    In the published code all levels of the grid have the same resolution, by mistake; here they grow.
    """

    name: Literal["hash"] = "hash"
    grid: HashGridConfig = field(
        default_factory=lambda: HashGridConfig(
            num_levels=8, log2_table_size=15, base_resolution=4, growth=1.5
        )
    )
    hidden: int = 64  # hidden width of the per-prompt MLP
    hyper_hidden: int = 64  # hidden width of the hypernetwork

    def __post_init__(self) -> None:
        check(self, "hidden", "hyper_hidden", at_least=1, limit=2**17)

    def build(self, text_dim: int) -> nn.Module:
        """Build the untrained module for text embeddings of width `text_dim`."""
        return HashEnvironment(self, text_dim)


@dataclass(frozen=True, kw_only=True)
class SHEnvironmentConfig:
    """A small MLP of spherical harmonics, the same for all prompts."""

    name: Literal["sh"] = "sh"
    num_bands: int = 3  # of spherical harmonics
    hidden: tuple[int, ...] = (16, 16)  # hidden widths of the MLP
    rgb_padding: float | None = None  # p: colors are (1 + 2 p) sigmoid(x) - p; null: sigmoid(x)

    def __post_init__(self) -> None:
        check(self, "num_bands", at_least=1, at_most=MAX_BANDS)
        check(self, "hidden", at_least=1, limit=2**17)
        check(self, "rgb_padding", at_least=0, at_most=0.1)

    def build(self, text_dim: int) -> nn.Module:
        """Build the untrained module; `text_dim` is not used."""
        return SHEnvironment(self)


@dataclass(frozen=True, kw_only=True)
class SharedHashEnvironmentConfig:
    """A hash grid over directions and a small MLP, the same for all prompts.

    The defaults are those of ScaleDreamer's runs of one object.
    """

    name: Literal["shared-hash"] = "shared-hash"
    grid: HashGridConfig = field(
        default_factory=lambda: HashGridConfig(num_levels=4, base_resolution=4, growth=4)
    )
    hidden: tuple[int, ...] = (16, 16)  # hidden widths of the MLP

    def __post_init__(self) -> None:
        check(self, "hidden", at_least=1, limit=2**17)

    def build(self, text_dim: int) -> nn.Module:
        """Build the untrained module; `text_dim` is not used."""
        return SharedHashEnvironment(self)


EnvironmentConfig = HashEnvironmentConfig | SHEnvironmentConfig | SharedHashEnvironmentConfig


class HashEnvironment(nn.Module):
    """Map a TextCondition to a function from directions [P, R, 3] to colors [P, R, 3] in (0, 1)."""

    def __init__(self, config: HashEnvironmentConfig, text_dim: int) -> None:
        super().__init__()
        self.grid = HashGrid(config.grid)
        self.widths = (config.grid.num_features, config.hidden, 3)
        last = nn.Linear(config.hyper_hidden, num_mlp_weights(self.widths))
        with torch.no_grad():
            nn.init.xavier_normal_(last.weight)
            nn.init.zeros_(last.bias)
            last.weight[-config.hidden * 3 :] *= 0.01  # start mid-gray
        first = nn.Linear(text_dim, config.hyper_hidden, bias=False)
        self.hypernet = nn.Sequential(first, nn.LayerNorm(config.hyper_hidden), nn.SiLU(), last)

    def forward(self, text: TextCondition) -> Callable[[Tensor], Tensor]:
        """Return the color function for text.pooled [P, D]."""
        dtype = self.grid.table.dtype
        flat = self.hypernet(text.pooled.to(dtype)).to(dtype)
        return PerPrompt(self._colors, split_mlp_weights(flat, self.widths))

    def _colors(self, directions: Tensor, *weights: Tensor) -> Tensor:
        """Return colors [P, R, 3] of unit directions [P, R, 3]; weights: [P, in, out] per layer."""
        return torch.sigmoid(batched_mlp(self.grid(0.5 * directions + 0.5), *weights))


class SHEnvironment(nn.Module):
    """Return a function from directions [P, R, 3] to colors [P, R, 3] in (0, 1), the same for any text."""

    def __init__(self, config: SHEnvironmentConfig) -> None:
        super().__init__()
        self.num_bands, self.rgb_padding = config.num_bands, config.rgb_padding
        self.head = BiasFreeMLP((config.num_bands**2, *config.hidden, 3))

    def forward(self, text: TextCondition) -> Callable[[Tensor], Tensor]:
        """Return the color function; `text` is not used."""
        return self._colors

    def _colors(self, directions: Tensor) -> Tensor:
        """Return colors [P, R, 3] of unit directions [P, R, 3]."""
        return colors_of(self.head(spherical_harmonics(directions, self.num_bands)), self.rgb_padding)


class SharedHashEnvironment(nn.Module):
    """Return a function from directions [P, R, 3] to colors [P, R, 3] in (0, 1), the same for any text."""

    def __init__(self, config: SharedHashEnvironmentConfig) -> None:
        super().__init__()
        self.grid = HashGrid(config.grid)
        self.head = BiasFreeMLP((config.grid.num_features, *config.hidden, 3))

    def forward(self, text: TextCondition) -> Callable[[Tensor], Tensor]:
        """Return the color function; `text` is not used."""
        return self._colors

    def _colors(self, directions: Tensor) -> Tensor:
        """Return colors [P, R, 3] of unit directions [P, R, 3]."""
        return torch.sigmoid(self.head(self.grid(0.5 * directions + 0.5)))


class WithEnvironment(nn.Module):
    """A generator and an environment: map text and z to scenes with a learned background."""

    def __init__(self, generator: nn.Module, environment: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        # Checkpoints and the optimizer's parameter groups refer to the name `surroundings`.
        self.surroundings = environment
        self.z_dim = getattr(generator, "z_dim", 0)

    def forward(
        self, text: TextCondition, z: Tensor | None = None
    ) -> EnvironmentScene | EnvironmentDensityScene | SplatScene:
        """Return P scenes with background, for text and z [P, z_dim]."""
        scene, background = self.generator(text, z), self.surroundings(text)
        if isinstance(scene, SplatScene):
            return replace(scene, background=background)
        if isinstance(scene, DensityScene):
            return EnvironmentDensityScene(scene, background)
        return EnvironmentScene(scene, background)


Queried = TypeVar("Queried", Scene, DensityScene)


@dataclass(frozen=True, eq=False)
class _WithBackground(Generic[Queried]):
    """What both kinds of scenes with a learned background share."""

    scene: Queried
    background: Callable[[Tensor], Tensor]  # unit directions [P, R, 3] => colors [P, R, 3]

    @property
    def num_prompts(self) -> int:
        """P."""
        return self.scene.num_prompts

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball around the origin that contains the object."""
        return self.scene.bounding_radius

    def select(self, index: int) -> Self:
        """Return the scene and background of prompt `index` alone. Raises IndexError; see `Scene`."""
        return replace(self, scene=self.scene.select(index), background=of_prompt(self.background, index))


class EnvironmentScene(_WithBackground[Scene]):
    """A `Scene` and its learned background: a `SceneWithBackground`."""

    def sdf(self, points: Tensor) -> Tensor:
        """Return signed distances [P, N] at points [P, N, 3]."""
        return self.scene.sdf(points)

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return signed distances [P, N] and albedo [P, N, 3], from one field evaluation."""
        return self.scene.sdf_and_albedo(points)


class EnvironmentDensityScene(_WithBackground[DensityScene]):
    """A `DensityScene` and its learned background."""

    def density(self, points: Tensor) -> Tensor:
        """Return densities [P, N] at points [P, N, 3]."""
        return self.scene.density(points)

    def density_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return densities [P, N] and albedo [P, N, 3], from one field evaluation."""
        return self.scene.density_and_albedo(points)
