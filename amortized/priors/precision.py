"""Gradients that pass through a network in float16 without vanishing in it.

float16 has nothing between 0 and 6e-8, and little below 6e-5, where the gradient of a mean over many
pixels lies. Bringing it to size 1 before it enters, and back after it has left, loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SMALLEST = 1e-30


def sized_gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """network(x) [B, ...] of x [B, ...], both float32: the gradient of each row is of size 1 within."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return network(x)
    sizes: list[Tensor] = []

    def enter(gradient: Tensor) -> Tensor:
        sizes[:] = [gradient.abs().flatten(1).amax(1).clamp(min=SMALLEST)]
        return gradient / _like(sizes[0], gradient)

    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * _like(sizes[0], gradient))
    y = network(x)
    y.register_hook(enter)
    return y


def times_in_gradient(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by `factor` on its way back."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * factor)
    return x


def _like(rows: Tensor, values: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (values.ndim - 1)).to(values)
