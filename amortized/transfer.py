"""Tensors between host and device, without making the host wait.

A copy from ordinary memory to a GPU makes the host wait until the GPU has done all that it was asked so far,
and so does every number that is read from it. A step that never waits lets the host run ahead and keep the
GPU busy. So numbers go to the device through page-locked ("pinned") memory, are made into constants once, and
come back through an event.
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
    """Tensors, dataclasses and tuples of them on another device; anything else is returned as it is.

    Copies to a GPU are queued, not waited for: from where the tensor lies if it is pinned, else through
    pinned memory. What is expanded (a stride of 0) is copied once and expanded there.
    """
    target = torch.device(device)
    return _each(values, lambda tensor: _sent(tensor, target))


def pin(values: Any) -> Any:
    """The same in pinned memory, from where a GPU takes its copy by itself."""
    return _each(values, lambda tensor: _expanded_from(tensor, lambda row: row.contiguous().pin_memory()))


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or tensor.device.type != "cpu" or not tensor.numel():
        return tensor.to(device)

    def send(part: Tensor) -> Tensor:
        pinned = part if part.is_pinned() else part.contiguous().pin_memory()
        return pinned.to(device, non_blocking=True)

    return _expanded_from(tensor, send)


def _expanded_from(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of what a tensor really holds, expanded again where the tensor was."""
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    own = tuple(slice(0, 1) if stride == 0 and size > 1 else slice(None) for size, stride in strides)
    return change(tensor[own]).expand(tensor.shape)


def _each(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, tuple):
        return tuple(_each(value, change) for value in values)
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **{name: _each(value, change) for name, value in vars(values).items()})
    return values


def constant(values: float | tuple, like: Tensor) -> Tensor:
    """Numbers (nested tuples) as a tensor of the type and on the device of `like`, sent there once.

    Every call with the same numbers returns the same tensor: do not write to it.
    """
    return _constant(values, like.dtype, like.device)


def index(places: tuple[int, ...], like: Tensor) -> Tensor:
    """The same as an index [N] (long)."""
    return _constant(places, torch.long, like.device)


@lru_cache(maxsize=256)
def _constant(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return to_device(torch.tensor(values, dtype=dtype), device)


class Readback:
    """A tensor on its way to the host. On a GPU the copy is queued, and an event tells when it is there."""

    def __init__(self, values: Tensor) -> None:
        self.host, self._done = values, None
        if values.device.type == "cuda":
            self.host = torch.empty_like(values, device="cpu", pin_memory=True)
            self.host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def tolist(self) -> list[Any]:
        """The numbers; waits for what was queued before the copy, not for what came after it."""
        if self._done is not None:
            self._done.synchronize()
        return self.host.tolist()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work queued inside runs beside the default stream, on a second one; no effect on a CPU."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_side_stream(device)):
        yield


@cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
