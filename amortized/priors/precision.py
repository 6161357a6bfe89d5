"""Gradients that pass through a network in float16 without vanishing in it.

float16 has nothing between 0 and 6e-8, and little below 6e-5, where the gradient of a mean over many
pixels lies. Bringing it to size 1 before it enters, and back after it has left, loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-30


def sized_gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """network(x) [B, ...] of x [B, ...], both float32: the gradient of each row is of size 1 within."""
    sizes: list[Tensor] = []
    return _Enter.apply(network(_Leave.apply(x, sizes)), sizes)  # type: ignore[return-value]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, sizes: list[Tensor]) -> Tensor:
        ctx.sizes = sizes
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        size = gradient.abs().flatten(1).amax(1).clamp(min=SMALLEST)
        ctx.sizes[:] = [size]
        return gradient / _like(size, gradient), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[Tensor]) -> Tensor:
        ctx.sizes = sizes
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient * _like(ctx.sizes[0], gradient), None


def _like(rows: Tensor, values: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (values.ndim - 1)).to(values)


def times_in_gradient(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by `factor` on its way back."""
    return x if factor == 1 else _Times.apply(x, factor)  # type: ignore[return-value]


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.factor, None
