"""Processes as values: who am I, how many are we, and the few collectives a step needs."""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from amortized.devices import configure_cuda, local_device

T = TypeVar("T")


class StoppedTogether(ValueError):
    """What one process met, and all of them stop for: one needs to say it."""


class PeerLost(RuntimeError):
    """Another process has ended, or cannot be reached."""


class SaidElsewhere(Exception):
    """Another process has said why all of them stop: this one ends with a status, and no word."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


@dataclass(frozen=True)
class World:
    """This process among all; with one process nothing is ever communicated."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    group: dist.ProcessGroup | None = None  # None: the default one

    def beside(self) -> World:
        """The same processes in a group of their own, on CPUs: for a thread that talks while others do.

        All processes call it alike.
        """
        group = dist.new_group(backend="gloo") if self.size > 1 else None
        return replace(self, device=torch.device("cpu"), group=group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Average over processes, equal on all of them; one collective."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.group)
            values /= self.size
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all processes in rank order [size * n, ...], equal on all of them."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values, group=self.group)
        return torch.cat(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """One value of each process, in rank order, on all of them."""
        if self.size == 1:
            return [value]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, value, group=self.group)
        return parts

    def together(self, action: Callable[[], T]) -> list[T]:
        """Do an action that every process must bring to an end; then go on with what each has found, or stop
        together.

        Raises StoppedTogether on all processes where it raised ValueError or OSError on any of them.
        """
        found, problem = None, None
        try:
            found = action()
        except (ValueError, OSError) as error:
            problem = str(error)
        told = self.gather_objects((found, problem))
        problems = [problem for _, problem in told if problem is not None]
        if problems:
            raise StoppedTogether(problems[0])
        return [found for found, _ in told]

    def barrier(self) -> None:
        """Wait until every process is here; used after work that only rank 0 does."""
        if self.size > 1:
            dist.barrier(self.group)


@contextmanager
def join_world(
    device: str = "auto", *, patience: timedelta | None = None, alone: bool = False
) -> Iterator[World]:
    """The world that torchrun's environment describes (one process without it), left on exit.

    With `alone`, one process has a process group too, as sharding needs one.

    Processes wait for each other for `patience`, by default the backend's own. What goes wrong within is
    raised on one of them, SaidElsewhere on the others, and PeerLost where one is gone without a word. Raises
    ValueError for a device that is not there, see `local_device`.
    """
    chosen = local_device(device)
    on_cuda = chosen.type == "cuda"
    if on_cuda:
        configure_cuda(chosen)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 and not alone:
        yield World(device=chosen)
        return
    # What this imports keeps any process group that it finds, and with it the threads that `_leave` ends.
    importlib.import_module("torch._dynamo")

    one = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if size == 1 else {}
    bound = chosen if on_cuda else None  # nccl then connects at once, and never guesses from the rank
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=patience, device_id=bound, **one)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen)
    except Exception as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            lost = PeerLost(
                "another process has ended, or cannot be reached: see what it said, or its launcher"
            )
            lost.__cause__, error = error, lost
        if not first_to_say():
            raise SaidElsewhere(2 if isinstance(error, ValueError) else 1) from error
        raise error
    finally:
        _leave()


def first_to_say() -> bool:
    """Whether no other process has asked this: one says why all of them stop."""
    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("said", 1) == 1
    except RuntimeError:  # who kept the count is gone
        return True


def _leave() -> None:
    """Destroy the process group, and let its threads put down what they hold.

    A thread of gloo that holds the last reference to a tensor when the interpreter ends aborts the process,
    after all that it had to do is done. A group ends its threads with itself: a DistributedDataParallel,
    which is in cycles, holds it. FSDP2 keeps its mesh, and so the group, for good: there a moment must do.
    """
    dist.destroy_process_group()
    gc.collect()
    time.sleep(0.2)
