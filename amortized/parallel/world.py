"""Processes as values: this rank, the world size, and the few collectives a training step needs."""

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
    """An error on one rank that stops all of them."""


class PeerLost(RuntimeError):
    """Another process has exited or cannot be reached."""


class ReportedByAnotherRank(Exception):
    """Another rank prints the error; this one exits silently with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


@dataclass(frozen=True)
class World:
    """This process among all processes. A single process never communicates."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    group: dist.ProcessGroup | None = None  # None: the default group

    def with_cpu_group(self) -> World:
        """A copy with its own Gloo group, for collectives from a background thread.

        Collective: call it on every rank.
        """
        group = dist.new_group(backend="gloo") if self.size > 1 else None
        return replace(self, device=torch.device("cpu"), group=group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Average over all ranks; one all-reduce."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.group)
            values /= self.size
        return values

    def gather(self, values: Tensor) -> Tensor:
        """All-gather: the rows of all ranks in rank order, [size * n, ...] from [n, ...]."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values, group=self.group)
        return torch.cat(parts)

    def copy_from_main(self, values: Tensor) -> None:
        """Overwrite `values` with those of rank 0."""
        if self.size > 1:
            dist.broadcast(values, 0, group=self.group)

    def gather_objects(self, value: Any) -> list[Any]:
        """All-gather of picklable objects, in rank order."""
        if self.size == 1:
            return [value]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, value, group=self.group)
        return parts

    def run_on_all(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on this rank and all-gather the results, in rank order.

        If it raised ValueError or OSError on any rank, raises StoppedTogether on all of them.
        """
        result, problem = None, None
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = str(error)
        outcomes = self.gather_objects((result, problem))
        problems = [problem for _, problem in outcomes if problem is not None]
        if problems:
            raise StoppedTogether(problems[0])
        return [result for result, _ in outcomes]

    def barrier(self) -> None:
        """Wait for all ranks, e.g. after work that only rank 0 does."""
        if self.size > 1:
            dist.barrier(self.group)


@contextmanager
def join_world(
    device: str = "auto", *, timeout: timedelta | None = None, always_group: bool = False
) -> Iterator[World]:
    """Context: the world described by torchrun's environment variables; a single process without them.

    device        see `local_device`, which raises ValueError if it does not exist
    timeout       of a collective; None: the backend's default
    always_group  create a process group for a single process too, as sharding needs one

    An exception in the block is raised on the first rank that reports it and becomes ReportedByAnotherRank
    on the others. A failed collective becomes PeerLost.
    """
    chosen = local_device(device)
    on_cuda = chosen.type == "cuda"
    if on_cuda:
        configure_cuda(chosen)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 and not always_group:
        yield World(device=chosen)
        return
    # This module captures any process group that exists when it is first imported, and then keeps the group's
    # threads alive, which `_leave` must end. So import it before there is one.
    importlib.import_module("torch._dynamo")

    single = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if size == 1 else {}
    bound = chosen if on_cuda else None  # NCCL then connects at once and does not guess from the rank
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timeout, device_id=bound, **single)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen)
    except Exception as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            lost = PeerLost("another process exited or cannot be reached: see its error, or the launcher's")
            lost.__cause__, error = error, lost
        if not claim_error_report():
            raise ReportedByAnotherRank(2 if isinstance(error, ValueError) else 1) from error
        raise error
    finally:
        _leave()


def claim_error_report() -> bool:
    """True on the first rank that calls it, so that only one rank prints the error."""
    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("error_reports", 1) == 1
    except RuntimeError:  # the rank that hosts the store has exited
        return True


def _leave() -> None:
    """Destroy the process group and give its threads time to release their tensors.

    If a Gloo thread holds the last reference to a tensor when the interpreter exits, the process aborts
    after all its work is done. Destroying the group ends its threads, but DistributedDataParallel holds the
    group in a reference cycle, hence the garbage collection. FSDP2 never releases its mesh: hence the sleep.
    """
    dist.destroy_process_group()
    gc.collect()
    time.sleep(0.2)
