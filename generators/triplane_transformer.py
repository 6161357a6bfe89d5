"""Triplane-Transformer: the learned tokens of three planes attend to the text and to each other.

ScaleDreamer (arXiv 2407.02040), after OpenLRM and LRM (arXiv 2311.04400):

    tokens 3 * 32 * 32, each layer: + attention to the text, + attention among tokens, + MLP
    planes = one transposed convolution 2 x 2 of the tokens             3 x 32 channels x 64 x 64
    f(x, y, z) = [plane_xy(x, y), plane_xz(x, z), plane_zy(z, y)]       concatenated, 96 wide
    sdf(x) = head_sdf(f(x)) + |x| - sphere_radius                       albedo(x) = sigmoid(head_rgb(f(x)))

Each token generates 2 x 2 cells independently of its neighbors, so surfaces tend to have ridges one token
wide. With `smooth`, which adds no parameters, the planes are filtered by [1 2 1] / 4 along both axes, tokens
start as waves over their plane, and the four cells of a token start equal: initially the planes are the
tokens, upsampled bilinearly. (After the ICNR initialization, arXiv 1707.02937, and StyleGAN's filters.)

The published size has 12 layers of width 768 with 16 heads, and 120.5 M parameters for text embeddings of
width 1024. Attention among 3072 tokens makes a forward pass cost about 300 G multiply-adds per prompt; the
planes take 1.6 MB. It ignores z: a text always gives the same scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from amortized.config import check
from amortized.encodings import BiasFreeMLP
from amortized.types import TextCondition
from generators.field import FeatureField, PerPrompt, check_sizes, checked_tokens

# The two coordinates of a point (x, y, z) that index each plane; the first runs along its width.
AXES = ((0, 1), (0, 2), (2, 1))


@dataclass(frozen=True, kw_only=True)
class TriplaneTransformerConfig:
    """Sizes of the generator; the defaults are the published ones."""

    name: Literal["triplane-transformer"] = "triplane-transformer"
    plane_tokens: int = 32  # tokens per side of a plane; planes have twice as many cells
    width: int = 768
    num_layers: int = 12
    num_heads: int = 16
    plane_channels: int = 32
    hidden: tuple[int, ...] = (64, 64)  # hidden widths of the two heads
    text: Literal["tokens", "pooled"] = "tokens"  # attend to all tokens, or to the pooled embedding
    smooth: bool = False  # filter the planes, and initialize them smooth
    # As in the published code, off by default (null):
    attention_bias: bool | None = None  # biases of the attention's outputs
    attend_padding: bool | None = None  # attend to the padding of a text too
    rgb_padding: float | None = None  # p, 0.001 there: colors are (1 + 2 p) sigmoid(x) - p
    sphere_radius: float = 0.8  # of the sphere that every prompt starts from
    bounding_radius: float = 1.0
    checkpointing: bool = False  # recompute each layer in the backward pass instead of storing it
    compile: bool = False  # torch.compile the layers: a minute at the start, faster steps on a GPU

    def __post_init__(self) -> None:
        check_sizes(self, "hidden", "plane_tokens", "width", "num_layers", "num_heads", "plane_channels")
        check(self, "plane_tokens", "num_layers", limit=1024)
        check(self, "rgb_padding", at_least=0, at_most=0.1)
        if self.attend_padding and self.text == "pooled":
            raise ValueError("attend_padding is about tokens: set text=tokens, or attend_padding=null")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}")

    def build(self, text_dim: int) -> TriplaneTransformer:
        """Build the untrained generator for text embeddings of width `text_dim`."""
        return TriplaneTransformer(self, text_dim)


class TriplaneTransformer(nn.Module):
    """Map text embeddings of width `text_dim` to P scenes."""

    def __init__(self, config: TriplaneTransformerConfig, text_dim: int) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, config.plane_tokens
        tokens = waves(side, width) if config.smooth else torch.randn(3 * side**2, width)
        self.tokens = nn.Parameter(tokens[None] / math.sqrt(width))
        by_token = config.text == "tokens"
        self.text_in = None if by_token else nn.Linear(text_dim, width)
        self.layers = nn.ModuleList(
            _Layer(width, config.num_heads, text_dim if by_token else None, bool(config.attention_bias))
            for _ in range(config.num_layers)
        )
        if config.compile:
            for layer in self.layers:
                layer.compile(dynamic=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_planes = nn.ConvTranspose2d(width, config.plane_channels, kernel_size=2, stride=2, bias=False)
        if config.smooth:
            weight = self.to_planes.weight.data
            weight.copy_(weight[:, :, :1, :1].clone().expand_as(weight))
        features = 3 * config.plane_channels
        self.head_sdf = BiasFreeMLP((features, *config.hidden, 1))
        self.head_rgb = BiasFreeMLP((features, *config.hidden, 3))

    def forward(self, text: TextCondition, z: Tensor | None = None) -> FeatureField:
        """Return P scenes for text.tokens [P, L, D], masked or not, or for text.pooled [P, D]; z is ignored.

        Raises ValueError if the tokens have no mask.
        """
        num_prompts = len(text.pooled)
        x = self.tokens.expand(num_prompts, -1, -1)  # [P, 3 * side^2, width]
        if self.text_in is None:
            context, mask = checked_tokens(text)
            # [P, 1, 1, L]: the same for all heads and queries.
            mask = None if self.config.attend_padding else mask[:, None, None]
        else:
            context, mask = self.text_in(text.pooled)[:, None], None  # [P, 1, width]
        for layer in self.layers:
            if self.config.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, context, mask, use_reentrant=False)
            else:
                x = layer(x, context, mask)
        side = self.config.plane_tokens
        grid = self.norm(x).view(num_prompts * 3, side, side, -1).movedim(-1, 1)  # [P * 3, width, side, side]
        planes = self.to_planes(grid)  # [P * 3, F, 2 * side, 2 * side]
        if self.config.smooth:
            planes = filtered(planes)
        return FeatureField(
            features=PerPrompt(read_planes, [planes.to(self.tokens.dtype).unflatten(0, (num_prompts, 3))]),
            head_sdf=self.head_sdf,
            head_rgb=self.head_rgb,
            num_prompts=num_prompts,
            sphere_radius=self.config.sphere_radius,
            bounding_radius=self.config.bounding_radius,
            rgb_padding=self.config.rgb_padding,
        )


def read_planes(points: Tensor, planes: Tensor) -> Tensor:
    """Interpolate features [P, N, 3 F] at points [P, N, 3] in [-1, 1]; zero outside the cube.

    planes: [P, 3, F, H, W]; a prompt's points read its planes only, and the three are concatenated.
    """
    axes = points.unbind(-1)  # indexing by a list would copy it to the GPU, and wait
    grid = torch.stack([torch.stack([axes[i], axes[j]], dim=-1) for i, j in AXES], dim=1)  # [P, 3, N, 2]
    grid = grid.flatten(0, 1)[:, :, None]  # [P * 3, N, 1, 2]
    features = functional.grid_sample(planes.flatten(0, 1), grid, padding_mode="zeros", align_corners=False)
    return features.squeeze(-1).view(len(points), -1, points.shape[1]).mT


def filtered(planes: Tensor) -> Tensor:
    """Filter planes [N, F, H, W] by [1 2 1] / 4 along both axes, with replicated borders."""
    num_features = planes.shape[1]
    row = planes.new_tensor([1, 2, 1]) / 4
    kernel = (row[:, None] * row).expand(num_features, 1, 3, 3)
    return functional.conv2d(functional.pad(planes, (1, 1, 1, 1), "replicate"), kernel, groups=num_features)


def waves(side: int, width: int) -> Tensor:
    """Return tokens [3 * side * side, width]: waves along both axes, plus a random vector per plane.

    Sines and cosines with the usual frequencies of position encodings, 1 to 1 / 10,000 radian per token.
    """
    num_frequencies = -(-width // 4)
    phases = torch.arange(side)[:, None] * 10000 ** (-torch.arange(num_frequencies) / num_frequencies)
    wave = torch.cat([phases.sin(), phases.cos()], dim=-1)  # [side, 2 * num_frequencies]
    rows, columns = wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)
    plane = torch.cat([rows, columns], dim=-1)[..., :width].flatten(0, 1)
    return (plane + torch.randn(3, 1, width)).flatten(0, 1)


class _Layer(nn.Module):
    """Pre-norm layer: cross-attention to the text, self-attention, and an MLP of four times the width.

    Without a `text_dim`, the context joins the tokens in self-attention instead.
    """

    def __init__(self, width: int, num_heads: int, text_dim: int | None, bias: bool) -> None:
        super().__init__()
        self.text_norm = None if text_dim is None else nn.LayerNorm(width, eps=1e-6)
        self.text_attention = None if text_dim is None else _Attention(width, num_heads, text_dim, bias)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = _Attention(width, num_heads, width, bias)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return tokens [P, T, width] from tokens x [P, T, width].

        context: [P, L, text_dim] with mask [P, 1, 1, L], or None to attend to all of it; without a
        `text_dim`, [P, 1, width] and None.
        """
        if self.text_norm is None or self.text_attention is None:
            x = torch.cat([context, x], dim=1)
        else:
            x = x + self.text_attention(self.text_norm(x), context, mask)
        normed = self.norm(x)
        x = x + self.attention(normed, normed)
        x = x + self.mlp(self.mlp_norm(x))
        return x if self.text_norm is not None else x[:, context.shape[1] :]


class _Attention(nn.Module):
    """Multi-head attention, with PyTorch's fused kernels if available; only its output may have a bias."""

    def __init__(self, width: int, num_heads: int, context_width: int, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width, width, bias=False)
        self.value = nn.Linear(context_width, width, bias=False)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from x [P, T, width] to context [P, L, context_width]; returns [P, T, width].

        mask: broadcast to [P, 1, T, L]; True for the context to attend to, or added to the logits.
        """

        def split_heads(values: Tensor) -> Tensor:
            """Reshape [P, T, width] to [P, num_heads, T, width / num_heads]."""
            return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query, key, value = self.query(x), self.key(context), self.value(context)
        attended = functional.scaled_dot_product_attention(
            split_heads(query), split_heads(key), split_heads(value), attn_mask=mask
        )
        return self.out(attended.transpose(1, 2).flatten(2))
