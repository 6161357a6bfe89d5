"""Instant-NGP: one object, as a hash grid and two small heads. No text input.

The representation of most published runs of one prompt (threestudio's `implicit-volume`). Two geometries:

    sdf       sdf(x) = head(f(x)) + |x| - sphere_radius, rendered as the other generators' scenes
    density   density(x) = activation(head(f(x)) + blob(x)), in 1 / length

    blob(x)   magic3d     blob_scale * (1 - |x| / blob_radius)
              dreamfusion blob_scale * exp(-|x|^2 / (2 blob_radius^2))

The default sizes are the published ones: 12.60 M parameters in the grid and 4,352 in the heads, which have
no biases. The published density is softplus with the blob of Magic3D (arXiv 2211.10440), scale 10 and
radius 0.5; DreamFusion's (arXiv 2209.14988) is exp with scale 5 and radius 0.2. Published boxes are cubes of
half side `bounding_radius`; here the object lies in the ball inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from amortized.config import check
from amortized.encodings import HashGrid, HashGridConfig
from amortized.types import TextCondition
from generators.field import FeatureField, check_sizes


@dataclass(frozen=True, kw_only=True)
class INGPConfig:
    """Sizes and start of the object."""

    name: Literal["ingp"] = "ingp"
    geometry: Literal["sdf", "density"] = "sdf"
    grid: HashGridConfig = field(default_factory=HashGridConfig)  # grid.open_levels: coarse to fine
    hidden: tuple[int, ...] = (64,)  # hidden widths of the two heads
    bias: bool = False  # biases in the heads, initially 0
    include_position: bool = False  # append x, y, z in [-1, 1] to the grid features
    shared_width: int | None = None  # width of a linear layer between grid and heads; null: no layer
    bounding_radius: float = 1.0
    sphere_radius: float = 0.5  # sdf: of the sphere that the object starts as
    activation: Literal["softplus", "trunc-exp"] = "softplus"  # density: from the head's output
    blob: Literal["magic3d", "dreamfusion"] = "magic3d"  # density: added to that output
    blob_scale: float = 10.0
    blob_radius: float = 0.5  # dreamfusion: the standard deviation

    def __post_init__(self) -> None:
        check_sizes(self, "hidden", "shared_width")
        check(self, "blob_scale", at_least=0, limit=1000)
        check(self, "blob_radius", above=0, limit=1000)

    @property
    def one_object(self) -> bool:
        """Whether it holds a single object, whatever the text."""
        return True

    @property
    def num_features(self) -> int:
        """Input width of the heads."""
        return self.shared_width or self.grid.num_features + 3 * self.include_position

    def build(self, text_dim: int) -> INGP:
        """Build the untrained object; `text_dim` is not used."""
        return INGP(self)


class INGP(nn.Module):
    """Return the scene of one object, for a text of one prompt, which is not used."""

    def __init__(self, config: INGPConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = HashGrid(config.grid)
        grid_width = config.grid.num_features + 3 * config.include_position
        self.shared = None if config.shared_width is None else nn.Linear(grid_width, config.shared_width)
        # Grid features start at 1e-4, and so do the heads' outputs, as published. Positions are of order 1.
        self.last_scale = 0.01 if config.include_position or self.shared is not None else 1.0
        widths = (config.num_features, *config.hidden)
        self.head_geometry = _head((*widths, 1), config.bias, self.last_scale)
        self.head_rgb = _head((*widths, 3), config.bias, self.last_scale)

    def forward(self, text: TextCondition, z: Tensor | None = None) -> FeatureField | DensityField:
        """Return the scene, a `Scene` or a `DensityScene`. Raises ValueError for several prompts."""
        if len(text.pooled) != 1:
            raise ValueError(
                f"generator.name=ingp is one object, but the batch has {len(text.pooled)} prompts: pass one "
                "prompt, or use another generator"
            )
        config = self.config
        if config.geometry == "density":
            return DensityField(
                features=self._features,
                head_density=self.head_geometry,
                head_rgb=self.head_rgb,
                config=config,
            )
        return FeatureField(
            features=self._features,
            head_sdf=self.head_geometry,
            head_rgb=self.head_rgb,
            num_prompts=1,
            sphere_radius=config.sphere_radius,
            bounding_radius=config.bounding_radius,
        )

    @torch.no_grad()
    def enlarge_outputs(self) -> None:
        """Undo the small scale of the heads' last layers, for a fit at high learning rates.

        From a small scale, all weights of a layer take the sign of the first steps, and ReLU layers without
        biases then cannot change the sign of their output: the blob of a density stays in a torus's hole.
        """
        for head in (self.head_geometry, self.head_rgb):
            head[-1].weight.div_(self.last_scale)  # type: ignore[operator]  # of a linear layer

    def _features(self, points: Tensor) -> Tensor:
        """Return features [1, N, num_features] at points [1, N, 3] in [-1, 1]."""
        features = self.grid(0.5 * points + 0.5)
        if self.config.include_position:
            features = torch.cat([features, points], dim=-1)
        return features if self.shared is None else self.shared(features)


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityField:
    """One object, a `DensityScene` with the density above and albedo(x) = sigmoid(head_rgb(f(x)))."""

    features: Callable[[Tensor], Tensor]  # points [1, N, 3] in the unit ball => [1, N, F]
    head_density: Callable[[Tensor], Tensor]  # [1, N, F] => [1, N, 1]
    head_rgb: Callable[[Tensor], Tensor]  # [1, N, F] => [1, N, 3]
    config: INGPConfig
    num_prompts: int = 1

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball around the origin that contains the object."""
        return self.config.bounding_radius

    def density(self, points: Tensor) -> Tensor:
        """Return densities [1, N] in 1/length at points [1, N, 3]."""
        return self._density(points, self.features(points / self.bounding_radius))

    def density_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return densities [1, N] and albedo [1, N, 3] in (0, 1), from the same features."""
        features = self.features(points / self.bounding_radius)
        return self._density(points, features), torch.sigmoid(self.head_rgb(features))

    def select(self, index: int) -> DensityField:
        """Return this scene, which has one prompt. Raises IndexError unless index is 0."""
        if index != 0:
            raise IndexError(f"select: the scene has 1 prompt, got index {index}")
        return self

    def _density(self, points: Tensor, features: Tensor) -> Tensor:
        """Return densities [1, N] at points [1, N, 3] with features [1, N, F]."""
        raw = self.head_density(features).squeeze(-1) + _blob(points, self.config)
        return nn.functional.softplus(raw) if self.config.activation == "softplus" else trunc_exp(raw)


def _blob(points: Tensor, config: INGPConfig) -> Tensor:
    """Return what is added to the head's output, [1, N] at points [1, N, 3]."""
    if config.blob == "magic3d":
        distance = torch.linalg.vector_norm(points, dim=-1)
        return config.blob_scale * (1 - distance / config.blob_radius)
    squared = points.square().sum(dim=-1)
    return config.blob_scale * torch.exp(-0.5 * squared / config.blob_radius**2)


def _head(widths: Sequence[int], bias: bool, last_scale: float) -> nn.Sequential:
    """An MLP [..., in] => [..., out], ReLU between layers; the last starts `last_scale` times as large."""
    linear = [nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]
    with torch.no_grad():
        linear[-1].weight *= last_scale
        for layer in linear:
            if bias:
                layer.bias.zero_()
    return nn.Sequential(*(part for layer in linear[:-1] for part in (layer, nn.ReLU())), linear[-1])


MAX_EXPONENT = 15.0


def trunc_exp(x: Tensor) -> Tensor:
    """Return exp(x), whose gradient is that at MAX_EXPONENT beyond it, as in torch-ngp."""
    return _TruncExp.apply(x)  # pyright: ignore[reportReturnType]


class _TruncExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * torch.exp(x.clamp(max=MAX_EXPONENT))
