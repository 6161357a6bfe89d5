"""How a training ends early: its reason, and what is left for the next start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from amortized.checkpointing import STOP_FILE
from amortized.checkpointing.checkpoint import newest_clause
from amortized.files import atomic_write_text
from amortized.monitoring import WEIGHTS, StepMonitor, StepRecord, TrainingStopped
from amortized.parallel import TrainingState, World, weight_sums

Leave = Callable[[str], object]  # ends the process with a sentence on stderr


@contextmanager
def mark_stop(run: Path, world: World) -> Iterator[None]:
    """Context: on TrainingStopped, write the reason to a file, so that a restart does not repeat it."""
    try:
        yield
    except TrainingStopped as error:
        if world.is_main or error.alone:
            try:
                atomic_write_text(run / STOP_FILE, f"{error}\n")
            except OSError as failure:
                error.args = (f"{error}; the file {STOP_FILE} could not be written ({failure.strerror})",)
        raise


@contextmanager
def explain_failure(
    monitor: StepMonitor, state: TrainingState, world: World, step: int, unread: Sequence[StepRecord]
) -> Iterator[None]:
    """Context: an error in step `step`, counted from 1, becomes TrainingStopped if weights are not finite.

    A forward pass may fail on such weights, e.g. by an index computed from them. `unread` are the records of
    the steps before.
    """
    try:
        yield
    except Exception:
        try:
            sums = weight_sums(state, world.device)
            monitor.explain(step, unread, {f"{WEIGHTS}{part}": total.item() for part, total in sums.items()})
        except TrainingStopped:
            raise
        except RuntimeError:  # the device itself has failed
            pass
        raise


def interruption(checkpoints: Path) -> str:
    """The sentence of a training that ends in the middle of a step."""
    return f"interrupted; {newest_clause(checkpoints)}; run the same command to resume"


def unless_interrupted(close: Callable[[], None]) -> Callable[..., None]:
    """An exit callback that does not wait for threads after KeyboardInterrupt."""
    return lambda kind, *_: None if kind is KeyboardInterrupt else close()


def exit_at_once(message: str, status: int) -> NoReturn:
    """Exit without waiting for threads, which write checkpoints and uploads: a partial one is never used."""
    with suppress(OSError):
        if message:
            print(f"\n{message}", file=sys.stderr)
        sys.stdout.flush()
    os._exit(status)
