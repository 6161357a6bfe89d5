"""Hyper-iNGP: one hash grid shared by all prompts, and per-prompt heads from a hypernetwork.

ScaleDreamer (arXiv 2407.02040), after ATT3D (arXiv 2306.07349). The hypernetwork maps the text to the weights
of two bias-free ReLU MLPs per prompt, one for the signed distance and one for the color:

    weights = W2 silu(norm(W1 [pooled text ; pooled tokens ; z]))        tokens and z are optional
    sdf(x) = head_sdf(f(x)) + |x| - sphere_radius                        albedo(x) = sigmoid(head_rgb(f(x)))

The default sizes are the published ones: 12.60 M parameters in the grid (50 MB in float32), and 348,544 in
the hypernetwork for text embeddings of width 1024. A forward pass generates 4,352 weights per prompt with
0.3 M multiply-adds; each point costs 16 lookups of 8 corners and 4,352 multiply-adds. The published box is
[-2, 2]; here the grid covers [-bounding_radius, bounding_radius], by default the box around the unit ball.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from amortized.config import check
from amortized.encodings import HashGrid, HashGridConfig, batched_mlp, num_mlp_weights, split_mlp_weights
from amortized.types import TextCondition
from generators.field import FeatureField, PerPrompt, check_sizes, checked_tokens, checked_z


@dataclass(frozen=True, kw_only=True)
class HyperINGPConfig:
    """Sizes of the generator."""

    name: Literal["hyper-ingp"] = "hyper-ingp"
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    hidden: tuple[int, ...] = (64,)  # hidden widths of the two heads
    hyper_hidden: int = 64
    sphere_radius: float = 0.5  # of the sphere that every prompt starts from
    bounding_radius: float = 1.0
    include_position: bool = False  # append x, y, z in [-1, 1] to the grid features
    shared_width: int | None = None  # width of a linear layer between grid and heads; null: no layer

    # Extensions of the published architecture, off by default.
    text: Literal["pooled", "tokens"] = "pooled"  # "tokens": pooled embedding and tokens
    token_queries: int = 4  # number of learned queries that pool the tokens
    z_dim: int = 0  # width of z, the noise that varies scenes of the same text; 0: no z
    spectral_norm: bool = False  # bounds the hypernetwork's Lipschitz constant, layer by layer

    def __post_init__(self) -> None:
        check_sizes(self, "hidden", "hyper_hidden", "token_queries", "shared_width")
        check(self, "z_dim", at_least=0, limit=2**17)

    def build(self, text_dim: int) -> HyperINGP:
        """Build the untrained generator for text embeddings of width `text_dim`."""
        return HyperINGP(self, text_dim)

    @property
    def num_features(self) -> int:
        """Input width of the heads."""
        return self.shared_width or self.grid.num_features + 3 * self.include_position

    @property
    def head_widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Layer widths of the distance head and of the color head, input first."""
        return (self.num_features, *self.hidden, 1), (self.num_features, *self.hidden, 3)


class HyperINGP(nn.Module):
    """Map text embeddings of width `text_dim`, and z [P, z_dim] if z_dim > 0, to P scenes."""

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
        """Initialize Xavier-normal weights and zero biases as published, with one change.

        The rows that generate the heads' last layers start 100 times smaller, so that every prompt starts as
        a mid-gray sphere. The published initialization is close to that because grid features start at 1e-4.
        With positions or a shared layer, features are of order 1, and unscaled last layers would start from
        blobs that differ between prompts and may leave the bounding ball. The rows are not zero, so that the
        first gradient reaches the grid.
        """
        nn.init.xavier_normal_(first.weight)
        nn.init.xavier_normal_(last.weight)
        nn.init.zeros_(last.bias)
        end = 0
        for widths, count in zip(self.config.head_widths, self.num_weights, strict=True):
            end += count
            last.weight[end - widths[-2] * widths[-1] : end] *= 0.01

    def forward(self, text: TextCondition, z: Tensor | None = None) -> FeatureField:
        """Return P scenes for text.pooled [P, D], z [P, z_dim], and with token pooling text.tokens [P, L, D].

        Without z, z = 0. Raises ValueError if z has another shape or the tokens have no mask.
        """
        dtype = self.grid.table.dtype
        inputs = [text.pooled.to(dtype)]
        if self.pooling is not None:
            tokens, mask = checked_tokens(text)
            inputs.append(self.pooling(tokens.to(dtype), mask))
        if self.z_dim:
            inputs.append(checked_z(z, len(text.pooled), self.z_dim, inputs[0]))
        # [P, weights of both heads], in the grid's float32 under autocast as well.
        weights = self.hypernet(torch.cat(inputs, dim=-1)).to(dtype)
        heads = zip(weights.split(self.num_weights, dim=-1), self.config.head_widths, strict=True)
        sdf_weights, rgb_weights = (split_mlp_weights(flat, widths) for flat, widths in heads)
        return FeatureField(
            features=self._features,
            head_sdf=PerPrompt(batched_mlp, sdf_weights),
            head_rgb=PerPrompt(batched_mlp, rgb_weights),
            num_prompts=len(text.pooled),
            sphere_radius=self.config.sphere_radius,
            bounding_radius=self.config.bounding_radius,
        )

    def _features(self, points: Tensor) -> Tensor:
        """Return features [P, N, num_features] at points [P, N, 3] in [-1, 1]; one lookup for all prompts."""
        features = self.grid(0.5 * points + 0.5)
        if self.config.include_position:
            features = torch.cat([features, points], dim=-1)
        return features if self.shared is None else self.shared(features)


class TokenPooling(nn.Module):
    """Attention pooling of tokens [P, L, D] to [P, Q * D], one weighted mean for each of Q learned queries.

    Keys and values are the tokens themselves. Queries start small, so that unmasked tokens start with nearly
    equal weights.
    """

    def __init__(self, text_dim: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, text_dim))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return [P, Q * D] for tokens [P, L, D] and their mask [P, L], bool or added to the logits."""
        scores = (tokens @ self.queries.T) / math.sqrt(tokens.shape[-1])  # [P, L, Q]
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[..., None], -torch.inf)
        else:
            scores = scores + mask[..., None]
        attention = scores.softmax(dim=1)
        return (attention.mT @ tokens).flatten(1)
