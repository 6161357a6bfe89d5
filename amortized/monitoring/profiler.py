"""A trace of a few training steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from amortized.files import atomic_path
from amortized.monitoring.best_effort import BestEffort, described
from amortized.parallel import World


class Profiler(Protocol):
    def step(self) -> None:
        """Mark the end of a step."""
        ...


class _NoProfiler:
    def step(self) -> None:
        pass


@contextmanager
def profile_steps(
    steps: tuple[int, int] | None, folder: Path, world: World, start: int, best_effort: BestEffort
) -> Iterator[Profiler]:
    """Context: rank 0 traces the steps [from, to) into FOLDER/profile; None traces nothing.

    `start` is the first step of this process.
    """
    if steps is None or not world.is_main or start >= steps[0]:
        yield _NoProfiler()
        return
    first, end = steps
    path = folder / "profile" / f"steps_{first}_{end}.json"

    def write(profiler: profile) -> None:
        with best_effort(described(path), (OSError, RuntimeError)), atomic_path(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
            _check_whole(temporary)

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=first - start - 1, warmup=1, active=end - first, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler


def _check_whole(trace: Path) -> None:
    """Raise OSError if a trace is missing or truncated: the profiler reports neither."""
    if not trace.exists():
        raise OSError(errno.EIO, "the profiler wrote nothing")
    with trace.open("rb") as file:
        file.seek(max(0, trace.stat().st_size - 16))
        if not file.read().rstrip().endswith(b"}"):
            raise OSError(errno.EIO, "the trace is truncated")
