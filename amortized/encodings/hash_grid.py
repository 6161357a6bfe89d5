"""Multi-resolution hash grid (Mueller et al. 2022, "Instant Neural Graphics Primitives").

Indexing follows tiny-cuda-nn's `grid.h`, so that its tables can be read here:

    scale_l      = base_resolution * growth^l - 1
    resolution_l = ceil(scale_l) + 1
    position     = x * scale_l + 0.5              (vertices sit half a cell off the box's faces)
    index        = x + y * resolution + z * resolution^2          if resolution^3 <= table size
                   (x ^ y * 2654435761 ^ z * 805459861) mod 2^32  otherwise
    row          = offset_l + index mod size_l,  size_l = min(resolution^3 rounded up to 8, table size)

At the far faces of the box a dense level's outermost corner wraps around, as it does there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from amortized.encodings.engines import check_engine, engine_on, tiny_cuda_nn_encoding

# Multipliers of y and z (x has 1) as the int32 numbers of the same 32 bits: products and xor then
# wrap exactly like unsigned ones, in half the memory traffic of int64.
PRIME_Y = 2654435761 - 2**32
PRIME_Z = 805459861

# Points handled at once on a CPU: temporaries stay in the cache instead of being paged in anew.
CPU_CHUNK = 32768


@dataclass(frozen=True, kw_only=True)
class HashGridConfig:
    """Shape of the grid; the defaults are the published ones (12.60 M parameters)."""

    num_levels: int = 16
    features_per_level: int = 2
    log2_table_size: int = 19
    base_resolution: int = 16
    growth: float = 1.4473
    engine: str = "auto"  # one of ENGINES; all read the same weights

    def __post_init__(self) -> None:
        check_engine(self.engine, self.features_per_level)
        for name in ("num_levels", "features_per_level", "base_resolution"):
            if getattr(self, name) < 1:
                raise ValueError(f"hash grid {name} must be at least 1, got {getattr(self, name)}")
        if not 3 <= self.log2_table_size <= 28:
            raise ValueError(f"hash grid log2_table_size must lie in [3, 28], got {self.log2_table_size}")
        if self.growth < 1:
            raise ValueError(f"hash grid growth must be at least 1, got {self.growth}")

    @property
    def num_features(self) -> int:
        """Width of the encoding."""
        return self.num_levels * self.features_per_level

    def tiny_cuda_nn(self) -> dict[str, int | float]:
        """The same shape in tiny-cuda-nn's words."""
        return {
            "n_levels": self.num_levels,
            "n_features_per_level": self.features_per_level,
            "log2_hashmap_size": self.log2_table_size,
            "base_resolution": self.base_resolution,
            "per_level_scale": self.growth,
        }


@dataclass(frozen=True, kw_only=True)
class GridLevel:
    """One level: `size` rows of the table from `offset` on."""

    scale: float
    resolution: int
    offset: int
    size: int

    @property
    def dense(self) -> bool:
        """Whether every vertex has a row of its own."""
        return self.resolution**3 <= self.size


def grid_levels(config: HashGridConfig) -> tuple[GridLevel, ...]:
    """The levels, coarsest first."""
    levels: list[GridLevel] = []
    offset = 0
    for level in range(config.num_levels):
        scale = config.base_resolution * config.growth**level - 1
        # A growth meant to end on a whole number must not lose or gain a vertex by rounding.
        resolution = math.ceil(scale - 1e-6) + 1
        size = min(-(-(resolution**3) // 8) * 8, 2**config.log2_table_size)
        levels.append(GridLevel(scale=scale, resolution=resolution, offset=offset, size=size))
        offset += size
    return tuple(levels)


class HashGrid(nn.Module):
    """Points [..., 3] in [0, 1] to features [..., L * F], level by level; points outside are clamped.

    The only parameter is `table` [rows, F], laid out as tiny-cuda-nn's; keep it float32 (sums of bfloat16
    gradients saturate). Gradients with respect to points are given where points require them, through
    plain autograd operations that are several times slower and hold every corner in memory.
    """

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = grid_levels(config)
        rows = self.levels[-1].offset + self.levels[-1].size
        self.table = nn.Parameter(torch.empty(rows, config.features_per_level).uniform_(-1e-4, 1e-4))
        sizes = [[level.resolution, level.size, level.offset] for level in self.levels]
        self.register_buffer("scales", torch.tensor([level.scale for level in self.levels]), persistent=False)
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        self._encoding: Any = None  # of tiny-cuda-nn, made at the first call

    @property
    def engine(self) -> str:
        """The engine that looks up where the table is now."""
        return engine_on(self.table.device, self.config.engine, self.config.features_per_level)

    def forward(self, points: Tensor) -> Tensor:
        flat = points.reshape(-1, 3).to(self.table.dtype).clamp(0, 1)
        if flat.requires_grad:
            features = torch.cat([self._interpolate(flat, level) for level in self.levels], dim=-1)
        else:
            features = self._look_up(flat)
        return features.view(*points.shape[:-1], self.config.num_features)

    def _look_up(self, points: Tensor) -> Tensor:
        """Features [N, L * F] of points [N, 3], differentiable in the table only."""
        engine = self.engine
        if engine == "triton":
            from amortized.encodings.triton_grid import TritonLookup

            return TritonLookup.apply(points, self.table, self.scales, self.sizes)
        if engine == "tiny-cuda-nn":
            if self._encoding is None:
                settings = self.config.tiny_cuda_nn()
                self._encoding = (tiny_cuda_nn_encoding(settings, self.table),)  # a tuple: no submodule
            self._encoding[0].params = self.table.view(-1)
            features = self._encoding[0](points)
            if features.requires_grad:
                # It reads the gradient's memory as rows, whatever the strides where nothing was padded.
                features.register_hook(Tensor.contiguous)
            return features
        return _Lookup.apply(points, self.table, self.levels)

    def _interpolate(self, points: Tensor, level: GridLevel) -> Tensor:
        rows, weights = corners(points.t(), level)
        return (self.table[rows] * weights[..., None]).sum(dim=0)


def corners(points: Tensor, level: GridLevel) -> tuple[Tensor, Tensor]:
    """Table rows [8, N] (int32) and trilinear weights [8, N] of the corners around points [3, N].

    Points lie last, so that every operation runs over long contiguous rows.
    """
    position = points * level.scale + 0.5
    cell = position.detach().floor()
    fraction = position - cell
    weights = torch.stack([1 - fraction, fraction])  # [2, 3, N]
    x, y, z = torch.stack([cell, cell + 1]).int().unbind(dim=1)  # each [2, N]
    x, y, z = x[None, None], y[None, :, None], z[:, None, None]
    if level.dense:
        rows = x + (y * level.resolution + (z * level.resolution**2 + level.offset))
        rows = torch.where(rows >= level.offset + level.size, rows - level.size, rows)
    else:
        rows = ((x ^ (y * PRIME_Y ^ z * PRIME_Z)) & (level.size - 1)).add_(level.offset)
    weights = (weights[:, None, 2] * weights[None, :, 1])[:, :, None] * weights[None, None, :, 0]
    return rows.flatten(0, 2), weights.flatten(0, 2)


class _Lookup(torch.autograd.Function):
    """Interpolated features [N, L * F] of points [N, 3], differentiable in the table only.

    Saves nothing but the points: finding the corners again costs less than storing 8 rows and
    weights per point and level. On one core, 200,000 points at 4 levels of 4 features (8 to 40,
    2^15 rows) take 400 ns per point forward and 790 with backward; plain indexing takes 1500, and
    autograd through embedding_bag 7000.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, levels: tuple[GridLevel, ...]) -> Tensor:
        ctx.save_for_backward(points)
        ctx.levels, ctx.table_shape = levels, table.shape
        width = table.shape[1]
        out = table.new_empty(len(points), len(levels) * width)
        for part in _chunks(points):
            chunk = points[part].t().contiguous()
            for i, level in enumerate(levels):
                rows, weights = corners(chunk, level)
                out[part, i * width : (i + 1) * width] = embedding_bag(
                    rows.t().contiguous(), table, mode="sum", per_sample_weights=weights.t().contiguous()
                )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (points,) = ctx.saved_tensors
        num_rows, width = ctx.table_shape
        # One column at a time: adding scalars is several times faster here than adding short rows.
        columns = grad.new_zeros(width, num_rows)
        for part in _chunks(points):
            chunk, grads = points[part].t().contiguous(), grad[part].t().contiguous()
            for i, level in enumerate(ctx.levels):
                rows, weights = corners(chunk, level)
                rows = rows.flatten()
                for j in range(width):
                    columns[j].index_add_(0, rows, (weights * grads[i * width + j]).flatten())
        return None, columns.t(), None


def _chunks(points: Tensor) -> Iterator[slice]:
    step = CPU_CHUNK if points.device.type == "cpu" else max(len(points), 1)
    return (slice(start, start + step) for start in range(0, len(points), step))
