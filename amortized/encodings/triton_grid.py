"""The hash grid lookup as Triton kernels, for GPUs without tiny-cuda-nn.

Each program handles a block of points at one level. Rows, weights and table layout are those of
`hash_grid.corners`; products and xor wrap as uint32. With TRITON_INTERPRET=1 the kernels run slowly on a CPU,
as in the tests. Importing this module requires Triton.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# pyright does not know Triton's language: constexpr takes plain numbers, static_range is a loop.
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 256  # points per program


@triton.jit
def _cell_of(points, scales, n, inside, level, axis: tl.constexpr):
    """Return the cell index and the fraction [SIZE] of points n along one axis."""
    position = tl.load(points + 3 * n + axis, mask=inside, other=0.0) * tl.load(scales + level) + 0.5
    cell = tl.floor(position)
    return cell.to(tl.int32).to(tl.uint32), position - cell


@triton.jit
def _row_of(x, y, z, sizes, level):
    """Return the table rows [SIZE] of vertices (x, y, z) at a level."""
    resolution = tl.load(sizes + 3 * level).to(tl.uint32)
    size = tl.load(sizes + 3 * level + 1).to(tl.uint32)
    dense = x + y * resolution + z * resolution * resolution
    dense = tl.where(dense >= size, dense - size, dense)  # less than twice the size, as in `corners`
    hashed = (x ^ (y * 2654435761) ^ (z * 805459861)) & (size - 1)  # size is a power of two
    is_dense = resolution.to(tl.uint64) * resolution * resolution <= size
    row = tl.where(is_dense, dense, hashed)
    return row.to(tl.int64) + tl.load(sizes + 3 * level + 2)


@triton.jit
def _forward(points, table, scales, sizes, out, num_points, F: tl.constexpr, SIZE: tl.constexpr):
    """Write the features of SIZE points at one level to out [N, L * F]."""
    level, num_levels = tl.program_id(1), tl.num_programs(1)
    n = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside, f = n < num_points, tl.arange(0, F)
    x, fx = _cell_of(points, scales, n, inside, level, 0)
    y, fy = _cell_of(points, scales, n, inside, level, 1)
    z, fz = _cell_of(points, scales, n, inside, level, 2)
    total = tl.zeros([SIZE, F], dtype=tl.float32)
    for corner in tl.static_range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * (fz if dz else 1 - fz)
        row = _row_of(x + dx, y + dy, z + dz, sizes, level)
        values = tl.load(table + row[:, None] * F + f[None, :], mask=inside[:, None], other=0.0)
        total += weight[:, None] * values
    pointers = out + (n[:, None] * num_levels + level) * F + f[None, :]
    tl.store(pointers, total, mask=inside[:, None])


@triton.jit
def _backward(points, grad, scales, sizes, table_grad, num_points, F: tl.constexpr, SIZE: tl.constexpr):
    """Add the gradients grad [N, L * F] of SIZE points at one level to table_grad [rows, F]."""
    level, num_levels = tl.program_id(1), tl.num_programs(1)
    n = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside, f = n < num_points, tl.arange(0, F)
    x, fx = _cell_of(points, scales, n, inside, level, 0)
    y, fy = _cell_of(points, scales, n, inside, level, 1)
    z, fz = _cell_of(points, scales, n, inside, level, 2)
    pointers = grad + (n[:, None] * num_levels + level) * F + f[None, :]
    values = tl.load(pointers, mask=inside[:, None], other=0.0)
    for corner in tl.static_range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * (fz if dz else 1 - fz)
        row = _row_of(x + dx, y + dy, z + dz, sizes, level)
        targets = table_grad + row[:, None] * F + f[None, :]
        # Relaxed and with the result unused, this compiles to `red`, which does not wait for memory.
        tl.atomic_add(targets, weight[:, None] * values, mask=inside[:, None], sem="relaxed")


class TritonLookup(torch.autograd.Function):
    """Return features [N, L * F] of points [N, 3] in [0, 1], differentiable in the table [rows, F] only.

    scales: float32 [L]. sizes: int64 [L, 3], the resolution, rows and offset of each level. F must be a
    power of 2.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, scales: Tensor, sizes: Tensor) -> Tensor:
        """Return features [N, L * F]."""
        points, table = points.contiguous(), table.contiguous()
        ctx.save_for_backward(points, scales, sizes)
        ctx.table_shape = table.shape
        out = table.new_empty(len(points), len(scales) * table.shape[1])
        if len(points):
            arguments = (points, table, scales, sizes, out, len(points))
            _forward[_programs(points, scales)](*arguments, F=table.shape[1], SIZE=BLOCK)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        """Return the gradient [rows, F] of the table for grad [N, L * F]."""
        points, scales, sizes = ctx.saved_tensors
        table_grad = grad.new_zeros(ctx.table_shape)
        if len(points):
            arguments = (points, grad.contiguous(), scales, sizes, table_grad, len(points))
            _backward[_programs(points, scales)](*arguments, F=ctx.table_shape[1], SIZE=BLOCK)
        return None, table_grad, None, None


def _programs(points: Tensor, scales: Tensor) -> tuple[int, int]:
    """Return the launch grid: blocks of points, levels."""
    return (-(-len(points) // BLOCK), len(scales))
