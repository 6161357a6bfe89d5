"""Logs finished steps and decides whether training should stop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amortized.monitoring.config import MonitorConfig
from amortized.monitoring.health import LossSpikes, Stragglers
from amortized.monitoring.logs import RunLog
from amortized.monitoring.stopwatch import Stopwatch
from amortized.parallel import World
from amortized.transfer import Readback


class TrainingStopped(RuntimeError):
    """Continuing is pointless; the message says why, and names the last good checkpoint."""


@dataclass(frozen=True)
class StepRecord:
    """The numbers of a finished step, still on the device, averaged over ranks."""

    step: int  # counted from 1
    names: list[str]
    values: Readback  # one per name
    digests: Tensor  # int64, one per slot of this rank
    stopwatch: Stopwatch  # of this rank


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The facts about a run that its monitor reports."""

    start: int  # the first step of this process
    steps: int  # of the whole run
    num_prompts: int
    views_per_prompt: int
    prompts_seen: Callable[[int], int]  # before a step, repeats counted
    last_good: Callable[[], str]  # a clause that names the newest checkpoint
    best_by: str | None = None  # the number that scores checkpoints


class StepMonitor:
    """Reads step records in order on every rank, with equal results; rank 0 also logs them to `folder`."""

    def __init__(
        self, config: MonitorConfig, run: RunFacts, folder: Path, world: World, *, quiet: bool = False
    ) -> None:
        self.config, self.run, self.device = config, run, world.device
        self.world = world.with_cpu_group()  # gathers host numbers without waiting for the device
        self.steps_empty = self.steps_full = 0  # consecutive steps outside the opacity range
        self.scores: list[float] = []  # since the last checkpoint
        self.spikes, self.stragglers = LossSpikes(), Stragglers()
        self.read_at = time.monotonic()
        self.log = None
        if world.is_main:
            self.log = RunLog(folder, config.tracker, start=run.start, steps=run.steps, quiet=quiet)

    def __call__(self, record: StepRecord) -> bool:
        """Log a step; returns whether a signal requests a stop.

        Raises TrainingStopped on a non-finite number or a collapsed scene.
        """
        numbers = dict(zip(record.names, record.values.tolist(), strict=True))
        interrupted = numbers.pop("interrupted") > 0
        self._write(record, numbers)
        best_by = self.run.best_by
        if best_by is not None:
            if best_by not in numbers:
                raise ValueError(f"checkpointing.best_by={best_by} must be one of {', '.join(numbers)}")
            self.scores.append(numbers[best_by])
        if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise TrainingStopped(
                f"step {record.step}: {', '.join(bad)} not finite; {self.run.last_good()}; lower "
                "optimizer.learning_rate or guidance.weight, and see log.jsonl for where it began"
            )
        self._check_opacity(record.step, numbers["opacity"])
        return interrupted

    def _check_opacity(self, step: int, opacity: float) -> None:
        low, high = self.config.min_opacity, self.config.max_opacity
        self.steps_empty = self.steps_empty + 1 if opacity < low else 0
        self.steps_full = self.steps_full + 1 if opacity > high else 0
        if self.steps_empty >= self.config.patience:
            raise TrainingStopped(
                f"step {step}: the scene has emptied (mean opacity {opacity:.2g}, below {low:g} for "
                f"{self.steps_empty} steps); {self.run.last_good()}; lower losses.sparsity or "
                "guidance.weight, or raise losses.opacity_floor or losses.inside"
            )
        if self.steps_full >= self.config.patience:
            raise TrainingStopped(
                f"step {step}: the scene fills the whole image (mean opacity {opacity:.3g}, above {high:g} "
                f"for {self.steps_full} steps); {self.run.last_good()}; raise losses.sparsity or "
                "losses.opacity_cap, or move the cameras back"
            )

    def pop_score(self) -> float | None:
        """The mean of checkpointing.best_by since the previous call; None if it is not set."""
        scores, self.scores = self.scores, []
        return sum(scores) / len(scores) if scores else None

    def note(self, text: str) -> None:
        """Log a sentence about the run."""
        if self.log is not None:
            self.log.note(text)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

    def _write(self, record: StepRecord, numbers: dict[str, float]) -> None:
        prompts_seen = self.run.prompts_seen(record.step)
        elapsed, self.read_at = time.monotonic() - self.read_at, time.monotonic()
        warnings = []
        if record.step % self.config.log_every == 0:
            digest = batch_digest(self.world.gather(record.digests))
            times = record.stopwatch.seconds()
            # Every rank's time for its own work, and its memory.
            local = [times.get("batch", 0.0) + times.get("forward", 0.0), peak_memory_gib(self.device)]
            ranks = self.world.gather(torch.tensor([local])).tolist()
            prompts = prompts_seen - self.run.prompts_seen(record.step - 1)
            figures = {
                "prompts_seen": prompts_seen,
                "views_per_prompt": prompts_seen * self.run.views_per_prompt / self.run.num_prompts,
                **{f"time/{name}": value for name, value in times.items()},  # of rank 0
                "speed/prompts_per_second": prompts / elapsed,
                "speed/device_seconds_per_prompt": elapsed * self.world.size / prompts,
                "memory_gib": max(memory for _, memory in ranks),  # the peak of any rank
            }
            if self.log is not None:
                self.log.write(record.step, {**numbers, **figures, "batch_digest": digest})
                warnings.append(self.stragglers(record.step, [seconds for seconds, _ in ranks]))
        if self.log is not None:
            warnings.append(self.spikes(record.step, numbers["loss"]))
            for warning in filter(None, warnings):
                self.note(warning)
            self.log.advance(loss=numbers["loss"], opacity=numbers["opacity"], prompts=prompts_seen)


def batch_digest(digests: Tensor) -> str:
    """16 hexadecimal digits of a global batch, independent of how slots were assigned to ranks."""
    ordered = torch.sort(digests.cpu()).values
    return hashlib.blake2b(ordered.numpy().tobytes(), digest_size=8).hexdigest()


def peak_memory_gib(device: torch.device) -> float:
    """This process's peak memory so far: of the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows cannot tell
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
