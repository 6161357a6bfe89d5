"""Keep gradients through a float16 network from underflowing.

float16 has no values between 0 and 6e-8 and few below 6e-5, but the gradient of a mean over many pixels is
that small. Scaling it to 1 before the network's backward pass, and back afterwards, avoids the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_SCALE = 1e-30  # for rows whose gradient is zero


def normalize_gradient_through(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return network(x) [B, ...] for x [B, ...], both float32, with normalized gradients inside the network.

    In the network's backward pass the largest absolute gradient of each row is 1. The gradient with respect
    to x is scaled back, so only rounding differs from network(x).
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return network(x)
    scales: list[Tensor] = []  # [B], set by the first backward hook and used by the second

    def normalize(gradient: Tensor) -> Tensor:
        scales[:] = [gradient.abs().flatten(1).amax(1).clamp(min=MIN_SCALE)]
        return gradient / _broadcast(scales[0], gradient)

    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * _broadcast(scales[0], gradient))
    y = network(x)
    y.register_hook(normalize)
    return y


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x unchanged, with its gradient multiplied by `factor`."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * factor)
    return x


def _broadcast(rows: Tensor, values: Tensor) -> Tensor:
    """Reshape rows [B] to [B, 1, ...], with the dtype and device of `values` [B, ...]."""
    return rows.view(-1, *[1] * (values.ndim - 1)).to(values)
