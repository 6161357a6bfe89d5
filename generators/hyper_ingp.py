"""Hyper-iNGP: one hash grid for all prompts, read by small networks that the text writes.

ScaleDreamer (arXiv 2407.02040) after ATT3D (arXiv 2306.07349). The grid is shared; a hypernetwork
turns the pooled text into the weights of two bias-free ReLU networks per prompt, one for the
signed distance and one for the colour:

    sdf(x) = head_sdf(f(x)) + |x| - sphere_radius         albedo(x) = sigmoid(head_rgb(f(x)))

The default sizes are the published ones: 12.60 M parameters in the grid, 348,544 in the
hypernetwork for text of width 1024. The published box is [-2, 2]; here the grid covers
[-bounding_radius, bounding_radius], by default the unit ball.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from amortized.encodings import HashGrid, HashGridConfig, batched_mlp, num_mlp_weights, split_mlp_weights
from amortized.types import TextCondition


@dataclass(frozen=True, kw_only=True)
class HyperINGPConfig:
    """Sizes of the generator."""

    name: Literal["hyper-ingp"] = "hyper-ingp"
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    hidden: tuple[int, ...] = (64,)  # hidden widths of each prompt's two heads
    hyper_hidden: int = 64
    sphere_radius: float = 0.5  # of the ball that every prompt starts as
    bounding_radius: float = 1.0
    include_position: bool = False  # append x, y, z in [-1, 1] to the grid's features
    shared_width: int | None = None  # width of a linear layer between grid and heads; None = no layer

    def __post_init__(self) -> None:
        if self.hyper_hidden < 1 or min(self.hidden, default=1) < 1:
            raise ValueError(
                f"generator hidden widths must be at least 1, got hidden {list(self.hidden)} "
                f"and hyper_hidden {self.hyper_hidden}"
            )
        if self.shared_width is not None and self.shared_width < 1:
            raise ValueError(f"generator shared_width must be at least 1 or null, got {self.shared_width}")
        if not 0 < self.sphere_radius < self.bounding_radius:
            raise ValueError(
                f"generator sphere_radius must lie between 0 and bounding_radius {self.bounding_radius}, "
                f"got {self.sphere_radius}"
            )

    @property
    def num_features(self) -> int:
        """Width of what the heads read."""
        return self.shared_width or self.grid.num_features + 3 * self.include_position

    @property
    def head_widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths of the distance head and of the colour head, input first."""
        return (self.num_features, *self.hidden, 1), (self.num_features, *self.hidden, 3)


class HyperINGP(nn.Module):
    """Text of width `text_dim` to P scenes. Takes no z: the same text always gives the same scene."""

    def __init__(self, config: HyperINGPConfig, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.grid = HashGrid(config.grid)
        grid_width = config.grid.num_features + 3 * config.include_position
        self.shared = None if config.shared_width is None else nn.Linear(grid_width, config.shared_width)
        self.num_weights = [num_mlp_weights(widths) for widths in config.head_widths]
        first = nn.Linear(text_dim, config.hyper_hidden, bias=False)
        last = nn.Linear(config.hyper_hidden, sum(self.num_weights))
        self._reset_parameters(first, last)
        self.hypernet = nn.Sequential(first, nn.LayerNorm(config.hyper_hidden), nn.SiLU(), last)

    @torch.no_grad()
    def _reset_parameters(self, first: nn.Linear, last: nn.Linear) -> None:
        """Xavier-normal weights and zero biases as published, with one change.

        The rows that write the heads' last layers start a hundred times smaller, so that every
        prompt starts as the sphere, in mid-grey. Published starts come close because the grid's
        features start at 1e-4; with positions or a shared layer the features are of order 1, and
        full-size last layers would start from blobs that differ by prompt and may leave the
        bounding ball. Not at zero: the first gradient is to reach the grid, too.
        """
        nn.init.xavier_normal_(first.weight)
        nn.init.xavier_normal_(last.weight)
        nn.init.zeros_(last.bias)
        end = 0
        for widths, count in zip(self.config.head_widths, self.num_weights, strict=True):
            end += count
            last.weight[end - widths[-2] * widths[-1] : end] *= 0.01

    def forward(self, text: TextCondition, z: Tensor | None = None) -> HyperINGPScene:
        """Scenes of text.pooled [P, D]; z is ignored."""
        dtype = self.grid.table.dtype
        flat = self.hypernet(text.pooled.to(dtype)).to(dtype)  # weights stay float32 under autocast
        parts = flat.split(self.num_weights, dim=-1)
        sdf, rgb = (
            split_mlp_weights(part, widths)
            for part, widths in zip(parts, self.config.head_widths, strict=True)
        )
        return HyperINGPScene(
            config=self.config, grid=self.grid, shared=self.shared, sdf_weights=sdf, rgb_weights=rgb
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class HyperINGPScene:
    """P objects; a `Scene`. Holds the graph of the call that made it."""

    config: HyperINGPConfig
    grid: HashGrid
    shared: nn.Linear | None
    sdf_weights: list[Tensor]  # per layer [P, in, out]
    rgb_weights: list[Tensor]  # per layer [P, in, out]

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball that holds the object."""
        return self.config.bounding_radius

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance [P, N] at points [P, N, 3]."""
        return self._sdf(points, self._features(points))

    def sdf_and_radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [P, N] and albedo [P, N, 3] in (0, 1), from one encoding."""
        features = self._features(points)
        return self._sdf(points, features), torch.sigmoid(batched_mlp(features, self.rgb_weights))

    def _features(self, points: Tensor) -> Tensor:
        """What the heads read, [P, N, num_features]: one call of the grid for all prompts."""
        unit = points / self.bounding_radius
        features = self.grid(0.5 * unit + 0.5)
        if self.config.include_position:
            features = torch.cat([features, unit], dim=-1)
        return features if self.shared is None else self.shared(features)

    def _sdf(self, points: Tensor, features: Tensor) -> Tensor:
        start = torch.linalg.vector_norm(points, dim=-1) - self.config.sphere_radius
        return start + batched_mlp(features, self.sdf_weights).squeeze(-1)
