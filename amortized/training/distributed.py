"""Processes as values: who am I, how many are we, and the few collectives a step needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among all; with one process nothing is ever communicated."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Average over processes, equal on all of them; one collective."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module that no DistributedDataParallel holds; one collective."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if self.size > 1 and gradients:
            mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = mean.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all processes in rank order [size * n, ...], equal on all of them."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """One value of each process, in rank order, on all of them."""
        if self.size == 1:
            return [value]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, value)
        return parts

    def barrier(self) -> None:
        """Wait until every process is here; used after work that only rank 0 does."""
        if self.size > 1:
            dist.barrier()


def to_device(values: Any, device: torch.device) -> Any:
    """A dataclass of tensors, on another device."""
    return replace(values, **{name: value.to(device) for name, value in vars(values).items()})


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """The world that torchrun's environment describes (one process without it), left on exit.

    The device comes from LOCAL_RANK alone, so that a second node does not ask for a ninth GPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    use_cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    chosen = (
        torch.device("cuda", local_rank) if use_cuda else torch.device("cpu" if device == "auto" else device)
    )
    if use_cuda:
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World(device=chosen)
        return
    dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen)
    finally:
        dist.destroy_process_group()
