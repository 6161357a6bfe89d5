"""Multi-resolution hash grid (Mueller et al. 2022, "Instant Neural Graphics Primitives").

Indexing follows tiny-cuda-nn's `grid.h`, so that tables are interchangeable:

    scale_l      = base_resolution * growth^l - 1     rounded as float32 exp2(l log2(growth))
    resolution_l = ceil(scale_l) + 1
    position     = x * scale_l + 0.5              (vertices are half a cell off the faces of the box)
    index        = x + y * resolution + z * resolution^2          if resolution^3 <= table size
                   (x ^ y * 2654435761 ^ z * 805459861) mod 2^32  otherwise
    row          = offset_l + index mod size_l,  size_l = min(resolution^3 rounded up to 8, table size)

At the far faces of the box, the outermost corner of a dense level wraps around, as in tiny-cuda-nn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from amortized.config import Schedule, check, check_schedule, value_at
from amortized.encodings.engines import Engine, check_engine, engine_on, tiny_cuda_nn_encoding

# Multipliers of y and z (that of x is 1) as int32 with the same 32 bits: products and xor wrap exactly as
# in uint32, with half the memory traffic of int64.
PRIME_Y = 2654435761 - 2**32
PRIME_Z = 805459861

MAX_RESOLUTION = 2**20  # its cube, the number of vertices, must fit into int64

# Points per chunk on a CPU: temporaries stay in the cache.
CPU_CHUNK = 32768


@dataclass(frozen=True, kw_only=True)
class HashGridConfig:
    """Shape of the grid; the defaults are the published ones (12.60 M parameters)."""

    num_levels: int = 16
    features_per_level: int = 2
    log2_table_size: int = 19
    base_resolution: int = 16
    # Ratio of the resolutions of successive levels. The published one: 16 levels from 16 to 4096.
    growth: float = 1.447269237440378
    # Levels in use, over the training, rounded down: coarse to fine. null: all, from the start. The features
    # of the others are 0 and get no gradient.
    open_levels: Schedule | None = None
    engine: Engine = "auto"  # all engines use the same weights

    def __post_init__(self) -> None:
        check(self, "num_levels", "features_per_level", at_least=1, limit=64)
        check(self, "base_resolution", at_least=1, limit=MAX_RESOLUTION)
        check(self, "growth", at_least=1, limit=64)
        check(self, "log2_table_size", at_least=3, at_most=28)
        finest = self.base_resolution * self.growth ** (self.num_levels - 1)
        if finest > MAX_RESOLUTION:
            raise ValueError(
                f"growth gives the finest of {self.num_levels} levels a resolution of {finest:.3g}, and at "
                f"most {MAX_RESOLUTION:,} is allowed: lower growth, num_levels or base_resolution"
            )
        if self.open_levels is not None:
            check_schedule("open_levels", self.open_levels, low=1)
        check_engine(self.engine, self.features_per_level)

    @property
    def num_features(self) -> int:
        """Width of the encoding, L * F."""
        return self.num_levels * self.features_per_level

    def tiny_cuda_nn(self) -> dict[str, int | float]:
        """Return the shape in tiny-cuda-nn's terms."""
        return {
            "n_levels": self.num_levels,
            "n_features_per_level": self.features_per_level,
            "log2_hashmap_size": self.log2_table_size,
            "base_resolution": self.base_resolution,
            "per_level_scale": self.growth,
        }


@dataclass(frozen=True, kw_only=True)
class GridLevel:
    """One level: rows [offset, offset + size) of the table."""

    scale: float  # a float32 number
    resolution: int
    offset: int
    size: int

    @property
    def dense(self) -> bool:
        """Whether each vertex has a separate row (no hashing)."""
        return self.resolution**3 <= self.size


def grid_levels(config: HashGridConfig) -> tuple[GridLevel, ...]:
    """Return the levels, coarsest first."""
    levels: list[GridLevel] = []
    offset = 0
    for level in range(config.num_levels):
        # Tolerate rounding: a growth chosen for an integer resolution must not add a vertex.
        resolution = math.ceil(config.base_resolution * config.growth**level - 1 - 1e-6) + 1
        size = min(-(-(resolution**3) // 8) * 8, 2**config.log2_table_size)
        scale = scale_of(level, config)
        levels.append(GridLevel(scale=scale, resolution=resolution, offset=offset, size=size))
        offset += size
    return tuple(levels)


def scale_of(level: int, config: HashGridConfig) -> float:
    """Return the scale of a level: exp2(level * log2(growth)) * base_resolution - 1 in float32.

    At the published sizes the finest level's scale is 4094.9985 instead of 4095: a table trained with the one
    is off by up to 1.5e-3 cells with the other. tiny-cuda-nn rounds after each operation, and so does this.
    """
    log2_growth = np.float32(math.log2(np.float32(config.growth)))
    power = np.float32(2.0 ** float(np.float32(level) * log2_growth))
    return float(power * np.float32(config.base_resolution) - np.float32(1))


class HashGrid(nn.Module):
    """Map points [..., 3] in [0, 1] to features [..., L * F], level by level; points outside are clamped.

    A coordinate that is NaN counts as 0: it has no cell, and an engine would read outside the table.

    The only parameter is `table` [rows, F], in tiny-cuda-nn's layout; keep it float32 (sums of bfloat16
    gradients saturate). If points require gradients, the lookup runs through plain autograd operations,
    which are several times slower and keep all corners in memory.
    """

    level_of_feature: Tensor
    num_open: Tensor | None

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = grid_levels(config)
        rows = self.levels[-1].offset + self.levels[-1].size
        self.table = nn.Parameter(torch.empty(rows, config.features_per_level).uniform_(-1e-4, 1e-4))
        sizes = [[level.resolution, level.size, level.offset] for level in self.levels]
        self.register_buffer("scales", torch.tensor([level.scale for level in self.levels]), persistent=False)
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        self._encoding: Any = None  # tiny-cuda-nn's, built in the first call
        progressive = config.open_levels is not None
        levels = torch.arange(config.num_levels).repeat_interleave(config.features_per_level)
        self.register_buffer("level_of_feature", levels if progressive else None, persistent=False)
        # Stored in checkpoints and exports: a grid is used with the levels that it was trained with last.
        self.register_buffer("num_open", torch.tensor([config.num_levels]) if progressive else None)
        self.set_progress(0.0)

    @property
    def engine(self) -> str:
        """The engine in use on the table's current device."""
        return engine_on(self.table.device, self.config.engine, self.config.features_per_level)

    def set_progress(self, progress: float) -> None:
        """Open the levels that are in use at `progress` in [0, 1] of the training."""
        if self.num_open is not None and self.config.open_levels is not None:
            levels = value_at(self.config.open_levels, progress)
            self.num_open.fill_(math.floor(levels + 1e-6))  # a whole number may come out slightly smaller

    def forward(self, points: Tensor) -> Tensor:
        """Return features [..., L * F] of points [..., 3]."""
        flat = points.reshape(-1, 3).to(self.table.dtype).nan_to_num(0.0).clamp(0, 1)
        if flat.requires_grad:
            features = torch.cat([self._interpolate(flat, level) for level in self.levels], dim=-1)
        else:
            features = self._look_up(flat)
        if self.num_open is not None:
            features = features * (self.level_of_feature < self.num_open)
        return features.view(*points.shape[:-1], self.config.num_features)

    def _look_up(self, points: Tensor) -> Tensor:
        """Return features [N, L * F] of points [N, 3], differentiable in the table only."""
        engine = self.engine
        if engine == "triton":
            from amortized.encodings.triton_grid import TritonLookup

            return TritonLookup.apply(points, self.table, self.scales, self.sizes)
        if engine == "tiny-cuda-nn":
            if self._encoding is None:
                settings = self.config.tiny_cuda_nn()
                self._encoding = (tiny_cuda_nn_encoding(settings, self.table),)  # in a tuple: not a submodule
            self._encoding[0].params = self.table.view(-1)
            features = self._encoding[0](points)
            if features.requires_grad:
                # Without padding, tiny-cuda-nn reads the gradient as contiguous rows, whatever its strides.
                features.register_hook(Tensor.contiguous)
            return features
        return _Lookup.apply(points, self.table, self.levels)

    def _interpolate(self, points: Tensor, level: GridLevel) -> Tensor:
        """Return features [N, F] of points [N, 3] at one level, differentiable in table and points."""
        rows, weights = corners(points.t(), level)
        return (self.table[rows] * weights[..., None]).sum(dim=0)


def corners(points: Tensor, level: GridLevel) -> tuple[Tensor, Tensor]:
    """Return table rows [8, N] (int32) and trilinear weights [8, N] of the corners around points [3, N].

    Points are the last axis, so that each operation runs over long contiguous rows.
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
    """Interpolate features [N, L * F] at points [N, 3], differentiable in the table only.

    Saves only the points: recomputing the corners costs less than storing 8 rows and weights per point and
    level. On one core, 200,000 points at 4 levels of 4 features (resolutions 8 to 40, 2^15 rows) take 400 ns
    per point forward and 790 with backward; plain indexing takes 1500, and autograd through embedding_bag
    7000.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, levels: tuple[GridLevel, ...]) -> Tensor:
        """Return features [N, L * F] of points [N, 3] from table [rows, F]."""
        ctx.save_for_backward(points)
        ctx.levels, ctx.table_shape = levels, table.shape
        width = table.shape[1]
        out = table.new_empty(len(points), len(levels) * width)
        for span in _chunks(points):
            chunk = points[span].t().contiguous()
            for i, level in enumerate(levels):
                rows, weights = corners(chunk, level)
                out[span, i * width : (i + 1) * width] = embedding_bag(
                    rows.t().contiguous(), table, mode="sum", per_sample_weights=weights.t().contiguous()
                )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        """Return the gradient [rows, F] of the table for grad [N, L * F]."""
        (points,) = ctx.saved_tensors
        num_rows, width = ctx.table_shape
        # One column at a time: index_add_ of scalars is several times faster than of short rows.
        columns = grad.new_zeros(width, num_rows)
        for span in _chunks(points):
            chunk = points[span].t().contiguous()
            grads = grad[span].t().contiguous()
            for i, level in enumerate(ctx.levels):
                rows, weights = corners(chunk, level)
                rows = rows.flatten()
                for j in range(width):
                    columns[j].index_add_(0, rows, (weights * grads[i * width + j]).flatten())
        return None, columns.t(), None


def _chunks(points: Tensor) -> Iterator[slice]:
    """Yield slices of CPU_CHUNK points, or of all points on a GPU."""
    step = CPU_CHUNK if points.device.type == "cpu" else max(len(points), 1)
    return (slice(start, start + step) for start in range(0, len(points), step))
