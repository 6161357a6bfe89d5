"""Copies between host and device that do not block the host.

A copy from pageable memory to a GPU blocks the host until all queued work is done, and so does reading a
number back. A step without such waits lets the host run ahead and keeps the GPU busy. So data goes to the
device through pinned memory, constants are copied once, and results come back asynchronously with an event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device | str) -> Any:
    """Copy tensors, also in tuples and dataclasses, to `device`; return other values unchanged.

    Copies to a GPU are asynchronous; tensors that are not pinned go through pinned memory. Expanded
    dimensions (stride 0) are copied once and expanded again.
    """
    target = torch.device(device)
    return _map_tensors(values, lambda tensor: _send(tensor, target))


def pin(values: Any) -> Any:
    """Copy tensors, as in `to_device`, to pinned memory, from which copies to a GPU are asynchronous."""
    return _map_tensors(
        values, lambda tensor: _map_unexpanded(tensor, lambda row: row.contiguous().pin_memory())
    )


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or tensor.device.type != "cpu" or not tensor.numel():
        return tensor.to(device)

    def send(source: Tensor) -> Tensor:
        pinned = source if source.is_pinned() else source.contiguous().pin_memory()
        return pinned.to(device, non_blocking=True)

    return _map_unexpanded(tensor, send)


def _map_unexpanded(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `function` to the tensor without its expanded dimensions, and expand the result."""
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    unexpanded = tuple(slice(0, 1) if stride == 0 and size > 1 else slice(None) for size, stride in strides)
    return function(tensor[unexpanded]).expand(tensor.shape)


def _map_tensors(values: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, tuple):
        return tuple(_map_tensors(value, function) for value in values)
    if is_dataclass(values) and not isinstance(values, type):
        return replace(
            values, **{name: _map_tensors(value, function) for name, value in vars(values).items()}
        )
    return values


def constant(values: float | tuple, like: Tensor) -> Tensor:
    """Return a cached tensor of `values` (a number or nested tuples), with dtype and device of `like`.

    Calls with equal values return the same tensor: do not modify it.
    """
    return _constant(values, like.dtype, like.device)


def index(positions: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a cached index tensor [N] (long) on the device of `like`; do not modify it."""
    return _constant(positions, torch.long, like.device)


@lru_cache(maxsize=256)
def _constant(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return to_device(torch.tensor(values, dtype=dtype), device)


class Readback:
    """An asynchronous copy of a tensor to the host. On a GPU, an event marks its completion."""

    def __init__(self, values: Tensor) -> None:
        self.host, self._done = values, None
        if values.device.type == "cuda":
            self.host = torch.empty_like(values, device="cpu", pin_memory=True)
            self.host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def tolist(self) -> list[Any]:
        """Return the numbers, after waiting for the copy but not for work queued after it."""
        if self._done is not None:
            self._done.synchronize()
        return self.host.tolist()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Context: queue work on a second CUDA stream, concurrent with the default one; no effect on a CPU."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_side_stream(device)):
        yield


@cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
