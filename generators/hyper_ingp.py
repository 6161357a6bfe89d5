"""Hyper-iNGP: one hash grid for all prompts, read by small networks that the text writes.

ScaleDreamer (arXiv 2407.02040) after ATT3D (arXiv 2306.07349). The grid is shared; a hypernetwork
turns the text into the weights of two bias-free ReLU networks per prompt, one for the signed
distance and one for the colour:

    weights = W2 silu(norm(W1 [pooled text ; pooled tokens ; z]))        tokens and z where asked for
    sdf(x) = head_sdf(f(x)) + |x| - sphere_radius                        albedo(x) = sigmoid(head_rgb(f(x)))

The default sizes are the published ones: 12.60 M parameters in the grid (50 MB in float32), 348,544 in
the hypernetwork for text of width 1024. A forward pass writes 4,352 weights a prompt, for 0.3 M
multiply-adds; a point then costs 16 lookups of 8 corners and 4,352 multiply-adds. The published box
is [-2, 2]; here the grid covers [-bounding_radius, bounding_radius], by default the unit ball.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from amortized.encodings import HashGrid, HashGridConfig, batched_mlp, num_mlp_weights, split_mlp_weights
from amortized.types import TextCondition
from generators.field import FeatureField, check_sizes, checked_tokens, checked_z


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

    # Additions to the published structure, off by default.
    text: Literal["pooled", "tokens"] = "pooled"  # "tokens": the hypernetwork reads them besides
    token_queries: int = 4  # by so many learned queries
    z_dim: int = 0  # width of z: what the text leaves open
    spectral_norm: bool = False  # bounds the hypernetwork's Lipschitz constant, layer by layer

    def __post_init__(self) -> None:
        check_sizes(
            self.hidden, self.sphere_radius, self.bounding_radius,
            hyper_hidden=self.hyper_hidden, token_queries=self.token_queries,
        )  # fmt: skip
        if self.shared_width is not None and self.shared_width < 1:
            raise ValueError(f"generator shared_width must be at least 1 or null, got {self.shared_width}")
        if self.z_dim < 0:
            raise ValueError(f"generator z_dim must be at least 0 (no z), got {self.z_dim}")

    def build(self, text_dim: int) -> HyperINGP:
        """The untrained generator, for text of width `text_dim`."""
        return HyperINGP(self, text_dim)

    @property
    def num_features(self) -> int:
        """Width of what the heads read."""
        return self.shared_width or self.grid.num_features + 3 * self.include_position

    @property
    def head_widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths of the distance head and of the colour head, input first."""
        return (self.num_features, *self.hidden, 1), (self.num_features, *self.hidden, 3)


class HyperINGP(nn.Module):
    """Text of width `text_dim`, and z [P, z_dim] where there is one, to P scenes."""

    def __init__(self, config: HyperINGPConfig, text_dim: int) -> None:
        super().__init__()
        self.config, self.z_dim = config, config.z_dim
        self.grid = HashGrid(config.grid)
        grid_width = config.grid.num_features + 3 * config.include_position
        self.shared = None if config.shared_width is None else nn.Linear(grid_width, config.shared_width)
        self.num_weights = [num_mlp_weights(widths) for widths in config.head_widths]
        by_token = config.text == "tokens"
        self.pooling = TokenPooling(text_dim, config.token_queries) if by_token else None
        width = text_dim * (1 + config.token_queries * by_token) + config.z_dim
        first = nn.Linear(width, config.hyper_hidden, bias=False)
        last = nn.Linear(config.hyper_hidden, sum(self.num_weights))
        self._reset_parameters(first, last)
        if config.spectral_norm:
            first, last = spectral_norm(first), spectral_norm(last)
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

    def forward(self, text: TextCondition, z: Tensor | None = None) -> FeatureField:
        """Scenes of text.pooled [P, D], and of text.tokens [P, L, D] and z [P, z_dim] where it reads them.

        Without z, all prompts share z = 0. Raises ValueError where z has another shape, or tokens no mask.
        """
        dtype = self.grid.table.dtype
        read = [text.pooled.to(dtype)]
        if self.pooling is not None:
            tokens, mask = checked_tokens(text)
            read.append(self.pooling(tokens.to(dtype), mask))
        if self.z_dim:
            read.append(checked_z(z, len(text.pooled), self.z_dim, read[0]))
        flat = self.hypernet(torch.cat(read, dim=-1)).to(dtype)  # weights stay float32 under autocast
        parts = flat.split(self.num_weights, dim=-1)
        sdf, rgb = (
            split_mlp_weights(part, widths)
            for part, widths in zip(parts, self.config.head_widths, strict=True)
        )
        return FeatureField(
            features=self._features,
            head_sdf=partial(batched_mlp, weights=sdf),
            head_rgb=partial(batched_mlp, weights=rgb),
            sphere_radius=self.config.sphere_radius,
            bounding_radius=self.config.bounding_radius,
        )

    def _features(self, points: Tensor) -> Tensor:
        """What the heads read, [P, N, num_features]: one call of the grid for all prompts."""
        features = self.grid(0.5 * points + 0.5)
        if self.config.include_position:
            features = torch.cat([features, points], dim=-1)
        return features if self.shared is None else self.shared(features)


class TokenPooling(nn.Module):
    """Tokens [P, L, D] to [P, Q * D]: each of Q learned queries takes a weighted mean of them.

    Attention whose keys and values are the tokens themselves. Queries start small: all tokens
    of the mask weigh alike.
    """

    def __init__(self, text_dim: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, text_dim))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        scores = (tokens @ self.queries.T) / math.sqrt(tokens.shape[-1])  # [P, L, Q]
        share = scores.masked_fill(~mask[..., None], -torch.inf).softmax(dim=1)
        return (share.mT @ tokens).flatten(1)
