"""What follows a convolution, in one pass over its volume: shift, bias, leaky ReLU, clamp.

Volumes of 128^3 take 537 MB a prompt, so that passes over memory cost more than the arithmetic. Written as
single operations there are five passes forward, and the backward pass keeps five volumes. Here the input is
overwritten and only the output is kept: the slope follows from its sign, the clamp from its magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

SLOPE = 0.2  # of the leaky ReLU below zero
LIMIT = 256.0  # activations stay within, so that bfloat16 and float16 cannot overflow


def leaky_clamped(x: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
    """clamp(leaky_relu(x + shift + bias)) of x [P, C, R, R, R], shift [P, 1, R, R, R] and bias [C].

    Overwrites x, which must not be needed by anything else. Has the type of x; where exactly the limit is
    reached, the gradient is zero.
    """
    if torch.compiler.is_compiling():  # fuses the plain formula on its own
        y = x + shift.to(x.dtype) + bias.to(x.dtype)[:, None, None, None]
        return functional.leaky_relu(y, SLOPE).clamp(-LIMIT, LIMIT)
    return _LeakyClamped.apply(x, shift, bias)  # pyright: ignore[reportReturnType]


class _LeakyClamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
        """[P, C, R, R, R], in the memory of x."""
        small = bias.to(x.dtype)[:, None, None, None]
        for part, moved in zip(_parts(x), _parts(shift.to(x.dtype)), strict=True):
            part.add_(moved).add_(small)
            functional.leaky_relu_(part, SLOPE).clamp_(-LIMIT, LIMIT)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.dtypes = shift.dtype, bias.dtype
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients to x, shift and bias; sums are taken in float32 at least."""
        (y,), (grad,) = ctx.saved_tensors, grads
        sums = torch.promote_types(y.dtype, torch.float32)
        to_x, to_bias = torch.empty_like(y), y.new_zeros(y.shape[1], dtype=sums)
        to_shift = y.new_empty(y.shape[0], 1, *y.shape[2:], dtype=sums)
        parts = (_parts(t) for t in (y, grad, to_x, to_shift))
        for y_part, grad_part, x_part, shift_part in zip(*parts, strict=True):
            torch.ops.aten.leaky_relu_backward(grad_part, y_part, SLOPE, True, grad_input=x_part)
            torch.ops.aten.hardtanh_backward(x_part, y_part, -LIMIT, LIMIT, grad_input=x_part)
            torch.sum(x_part, dim=1, keepdim=True, dtype=sums, out=shift_part)
            to_bias += x_part.sum(dim=(0, 2, 3, 4), dtype=sums)
        return to_x, to_shift.to(ctx.dtypes[0]), to_bias.to(ctx.dtypes[1])


def _parts(x: Tensor) -> Iterator[Tensor]:
    """x [P, C, R, R, R], on a CPU cut along prompts and z, so that a part stays in its cache (4 MB at 128^3)."""
    if x.device.type != "cpu":
        yield x
        return
    for prompt in x.split(1):
        yield from prompt.split(1 if x.shape[2] > 32 else 32, dim=2)
