"""The fused, in-place epilogue of a convolution: shift, bias, leaky ReLU, clamp.

Volumes of 128^3 take 537 MB per prompt, so memory costs more than arithmetic. As separate operations, each
allocates a volume, and most save one for the backward pass. Here the input is overwritten and only the output
is saved: its sign gives the slope, its magnitude the clamp.

Processing volumes in chunks that fit the cache was much slower, because of the number of calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

SLOPE = 0.2  # of the leaky ReLU below zero
LIMIT = 256.0  # clamp activations to [-256, 256], so that float16 and bfloat16 cannot overflow


def leaky_clamped(x: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
    """Return clamp(leaky_relu(x + shift + bias)) for x [P, C, R, R, R], shift [P, 1, R, R, R] and bias [C].

    Overwrites x, which the caller must not use afterwards. The result has the dtype of x. The gradient is
    zero at the limits.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain formula
        y = x + shift.to(x.dtype) + bias.to(x.dtype)[:, None, None, None]
        return functional.leaky_relu(y, SLOPE).clamp(-LIMIT, LIMIT)
    return _LeakyClamped.apply(x, shift, bias)  # pyright: ignore[reportReturnType]


class _LeakyClamped(torch.autograd.Function):
    """`leaky_clamped` in place, with a backward pass from the output alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
        """Return [P, C, R, R, R] in the memory of x."""
        x.add_(shift.to(x.dtype)).add_(bias.to(x.dtype)[:, None, None, None])
        functional.leaky_relu_(x, SLOPE).clamp_(-LIMIT, LIMIT)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.dtypes = shift.dtype, bias.dtype
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, shift and bias; sums are in float32 or wider."""
        (y,), (grad,) = ctx.saved_tensors, grads
        sum_dtype = torch.promote_types(y.dtype, torch.float32)
        grad_x = torch.ops.aten.leaky_relu_backward(grad, y, SLOPE, True)
        torch.ops.aten.hardtanh_backward(grad_x, y, -LIMIT, LIMIT, grad_input=grad_x)
        grad_shift = grad_x.sum(dim=1, keepdim=True, dtype=sum_dtype).to(ctx.dtypes[0])
        return grad_x, grad_shift, grad_x.sum(dim=(0, 2, 3, 4), dtype=sum_dtype).to(ctx.dtypes[1])
