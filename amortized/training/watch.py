"""Finished steps: logged, and judged whether going on is of any use."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amortized.training.distributed import World
from amortized.training.health import Spikes, Stragglers
from amortized.training.logs import RunLog
from amortized.training.sampler import batch_digest
from amortized.training.settings import TrainerConfig
from amortized.training.stopwatch import Stopwatch
from amortized.transfer import Readback

STOPPED = "stopped"  # a file in a run's folder: why it stopped


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why, and what the last good checkpoint is."""


@dataclass(frozen=True)
class Record:
    """What a finished step leaves: numbers still on the device, averaged over processes."""

    step: int  # counted from 1
    names: list[str]
    values: Readback  # one per name
    digests: Tensor  # int64, one per slot of this process
    stopwatch: Stopwatch  # of this process


class Watch:
    """Reads records in order, alike on every process; the main one also logs them into `folder`."""

    def __init__(
        self,
        config: TrainerConfig,
        world: World,
        folder: Path,
        *,
        prompts_seen: Callable[[int], int],
        num_prompts: int,
        last_good: Callable[[], str],
        start: int,
        quiet: bool,
    ) -> None:
        self.config, self.device, self.folder = config, world.device, folder
        self.world = world.beside()  # what the host knows is gathered by hosts: no device is waited for
        self.prompts_seen, self.num_prompts, self.last_good = prompts_seen, num_prompts, last_good
        self.empty_for = self.full_for = 0  # steps in a row without an object, or with nothing else
        self.scores: list[float] = []  # since the last checkpoint
        self.spikes, self.stragglers = Spikes(), Stragglers()
        self.read_at = time.monotonic()
        self.log = RunLog(folder, config, start=start, quiet=quiet) if world.is_main else None

    def __call__(self, record: Record) -> bool:
        """Whether a signal asks for an end. Raises TrainingStopped where going on is of no use."""
        numbers = dict(zip(record.names, record.values.tolist(), strict=True))
        interrupted = numbers.pop("interrupted") > 0
        self._write(record, numbers)
        if self.config.best_by is not None:
            if self.config.best_by not in numbers:
                raise ValueError(f"trainer.best_by={self.config.best_by} is none of {', '.join(numbers)}")
            self.scores.append(numbers[self.config.best_by])
        if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise TrainingStopped(
                f"step {record.step}: {', '.join(bad)} not finite; {self.last_good()}; lower "
                "optimizer.learning_rate or guidance.weight, and see log.jsonl for where it began"
            )
        opacity, least, most = numbers["opacity"], self.config.min_opacity, self.config.max_opacity
        self.empty_for = self.empty_for + 1 if opacity < least else 0
        self.full_for = self.full_for + 1 if opacity > most else 0
        if self.empty_for >= self.config.patience:
            raise TrainingStopped(
                f"step {record.step}: the scene has emptied (mean opacity {opacity:.2g}, under "
                f"{least:g} for {self.empty_for} steps); {self.last_good()}; lower losses.sparsity or "
                "guidance.weight, or raise losses.opacity_floor or losses.inside"
            )
        if self.full_for >= self.config.patience:
            raise TrainingStopped(
                f"step {record.step}: the scene fills all of the image (mean opacity {opacity:.3g}, over "
                f"{most:g} for {self.full_for} steps); {self.last_good()}; raise losses.sparsity or "
                "losses.opacity_cap, or move the cameras back"
            )
        return interrupted

    def score(self) -> float | None:
        """The mean of trainer.best_by since this was last asked; None without it."""
        scores, self.scores = self.scores, []
        return sum(scores) / len(scores) if scores else None

    def note(self, text: str) -> None:
        """Log a sentence about the run."""
        if self.log is not None:
            self.log.note(text)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

    def _write(self, record: Record, numbers: dict[str, float]) -> None:
        seen = self.prompts_seen(record.step)
        took, self.read_at = time.monotonic() - self.read_at, time.monotonic()
        if record.step % self.config.log_every == 0:
            digest = batch_digest(self.world.gather(record.digests))
            times = record.stopwatch.seconds()
            own = [times.get("batch", 0.0) + times.get("forward", 0.0), memory_gib(self.device)]
            everyones = self.world.gather(torch.tensor([own])).tolist()
            prompts = seen - self.prompts_seen(record.step - 1)
            figures = {
                "prompts_seen": seen,
                "views_per_prompt": seen * self.config.views_per_prompt / self.num_prompts,
                **{f"time/{name}": value for name, value in times.items()},  # of the main process
                "speed/prompts_per_second": prompts / took,
                "speed/device_seconds_per_prompt": took * self.world.size / prompts,
                "memory_gib": max(memory for _, memory in everyones),  # at most, on any process
            }
            if self.log is not None:
                self.log.write(record.step, {**numbers, **figures, "batch_digest": digest})
                found = self.stragglers(record.step, [seconds for seconds, _ in everyones])
                if found is not None:
                    self.note(found)
        if self.log is not None:
            found = self.spikes(record.step, numbers["loss"])
            if found is not None:
                self.note(found)
            self.log.advance(loss=numbers["loss"], opacity=numbers["opacity"], prompts=seen)


def memory_gib(device: torch.device) -> float:
    """The most that this process has had: of the GPU, or of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
