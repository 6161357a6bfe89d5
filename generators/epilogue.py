"""What follows a convolution, in place: shift, bias, leaky ReLU, clamp.

Volumes of 128^3 take 537 MB a prompt, so that memory costs more than the arithmetic. Written as plain
operations, each makes a volume and most keep one for the backward pass. Here the input is overwritten and
only the output is kept: the slope follows from its sign, the clamp from its magnitude.

Cutting volumes into parts that fit the cache was slower by far, for its many calls.
"""

from __future__ import annotations

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
        x.add_(shift.to(x.dtype)).add_(bias.to(x.dtype)[:, None, None, None])
        functional.leaky_relu_(x, SLOPE).clamp_(-LIMIT, LIMIT)
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
        to_x = torch.ops.aten.leaky_relu_backward(grad, y, SLOPE, True)
        torch.ops.aten.hardtanh_backward(to_x, y, -LIMIT, LIMIT, grad_input=to_x)
        to_shift = to_x.sum(dim=1, keepdim=True, dtype=sums).to(ctx.dtypes[0])
        return to_x, to_shift, to_x.sum(dim=(0, 2, 3, 4), dtype=sums).to(ctx.dtypes[1])
