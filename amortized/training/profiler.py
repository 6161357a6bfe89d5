"""A trace of some steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from amortized.training.distributed import World


class Steps(Protocol):
    def step(self) -> None:
        """A step is over."""
        ...


class _Nothing:
    def step(self) -> None:
        pass


@contextmanager
def profiled(steps: tuple[int, int] | None, folder: Path, world: World, start: int) -> Iterator[Steps]:
    """Within, the steps [from, to) of the main process are traced into FOLDER/profile; None: none are.

    `start` is the step that comes first.
    """
    if steps is None or not world.is_main or start >= steps[0]:
        yield _Nothing()
        return
    first, end = steps
    folder = folder / "profile"
    folder.mkdir(parents=True, exist_ok=True)

    def write(done: profile) -> None:
        done.export_chrome_trace(str(folder / f"steps_{first}_{end}.json"))

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=first - start - 1, warmup=1, active=end - first, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as tracing:
        yield tracing
