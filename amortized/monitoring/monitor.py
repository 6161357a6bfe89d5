"""Logs finished steps and decides whether training should stop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amortized.monitoring.best_effort import BestEffort
from amortized.monitoring.config import MonitorConfig
from amortized.monitoring.forecast import forecast
from amortized.monitoring.health import LossSpikes, Stragglers
from amortized.monitoring.logs import RunLog
from amortized.monitoring.run_html import Facts, Status
from amortized.monitoring.run_page import RunPage
from amortized.monitoring.stopwatch import Stopwatch
from amortized.parallel import World
from amortized.transfer import Readback

WEIGHTS = "weights/"  # of numbers that a step reports for the check that they are finite, not to be logged


class TrainingStopped(RuntimeError):
    """Continuing is pointless; the message says why, and names the last good checkpoint.

    All ranks raise it together, unless `alone`.
    """

    def __init__(self, message: str, *, alone: bool = False) -> None:
        super().__init__(message)
        self.alone = alone


@dataclass(frozen=True)
class StepRecord:
    """The numbers of a finished step, still on the device, averaged over ranks."""

    step: int  # counted from 1
    names: list[str]
    values: Readback  # one per name
    digests: Tensor  # int64, one per slot of this rank
    stopwatch: Stopwatch  # of this rank
    rates: dict[str, float]  # learning rates, by part of the model


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
    page: Facts | None = None  # what its page says about it; None: it has no page


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
        self.seconds: list[float] = []  # of the first two steps
        self.log = None
        if world.is_main:
            page = None if run.page is None else RunPage(folder, run.page, run.start)
            self.log = RunLog(
                folder, config.tracker, start=run.start, steps=run.steps, quiet=quiet, page=page
            )
        # For other files of the run that it can do without.
        self.best_effort = BestEffort(self.note) if self.log is None else self.log.best_effort

    def __call__(self, record: StepRecord) -> bool:
        """Log a step; returns whether a signal requests a stop. Collective.

        Raises TrainingStopped on a non-finite number or a collapsed scene.
        """
        numbers = _numbers_of(record)
        interrupted = numbers.pop("interrupted") > 0
        logged = {name: value for name, value in numbers.items() if not name.startswith(WEIGHTS)}
        self._write(record, logged)
        best_by = self.run.best_by
        if best_by is not None:
            if best_by not in logged:
                raise ValueError(f"checkpointing.best_by={best_by} must be one of {', '.join(logged)}")
            self.scores.append(logged[best_by])
        self._check_finite(record.step, numbers)
        self._check_opacity(record.step, numbers["opacity"])
        return interrupted

    def explain(self, step: int, unread: Sequence[StepRecord], weights: Mapping[str, float]) -> None:
        """Raise TrainingStopped if numbers that are not finite explain why a step failed on this rank.

        `step` counts from 1. `unread` are the steps before it that were not logged yet; `weights` are sums as
        in their records. Not collective: other ranks may be waiting in the step.
        """
        for record in unread:
            self._check_finite(record.step, _numbers_of(record), alone=True)
        self._check_finite(step, weights, alone=True)

    def _check_finite(self, step: int, numbers: Mapping[str, float], *, alone: bool = False) -> None:
        if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
            more = f" and {len(bad) - 3} more numbers" if len(bad) > 3 else ""
            raise TrainingStopped(
                f"step {step}: {', '.join(bad[:3])}{more} not finite; {self.run.last_good()}; lower "
                "optimizer.learning_rate or guidance.weight, and see log.jsonl for where it began",
                alone=alone,
            )

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

    def text(self, name: str, text: str) -> None:
        """Add a text to TensorBoard."""
        if self.log is not None:
            self.log.text(name, text)

    def picture(self, name: str, image: Tensor) -> None:
        """Add an image [H, W, 3], float in [0, 1], to TensorBoard."""
        if self.log is not None:
            self.log.picture(name, image)

    def show(self, text: str) -> None:
        """Show a line on the console, without logging it."""
        if self.log is not None:
            self.log.show(text)

    def preview_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the scores of the preview of a step, counted from 1, as a line for themselves."""
        if self.log is not None:
            self.log.write(step, {f"preview/{name}": value for name, value in scores.items()})

    def preview(self, path: Path) -> None:
        """Show the picture of a preview."""
        if self.log is not None:
            self.log.preview(path)

    def write_page(self) -> None:
        """Write the run's page."""
        if self.log is not None:
            self.log.write_page()

    def close(self, error: BaseException | None = None) -> None:
        """End the logs; `error` is why the training ended, if it failed."""
        if self.log is not None:
            status, reason, needs_change = _ending(error, self.log.step == self.run.steps)
            self.log.write_page(status, reason, needs_change)
            self.log.close()
            self.log.end(status, reason)

    def _forecast(self, step: int, elapsed: float) -> str | None:
        """After the second step of this process, what the remaining ones will take."""
        if len(self.seconds) == 2:
            return None
        self.seconds.append(elapsed)
        return forecast(self.seconds, self.run.steps - step)

    def _write(self, record: StepRecord, numbers: dict[str, float]) -> None:
        prompts_seen = self.run.prompts_seen(record.step)
        elapsed, self.read_at = time.monotonic() - self.read_at, time.monotonic()
        warnings = [self._forecast(record.step, elapsed)]
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
                **{f"learning_rate/{name}": rate for name, rate in record.rates.items()},
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


def _ending(error: BaseException | None, is_complete: bool) -> tuple[Status, str, bool]:
    """How a training ended, why, and whether the same settings would fail again, for its page."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "Interrupted in the middle of a step at", False
    if isinstance(error, TrainingStopped):
        return "failed", str(error), True
    if error is not None:
        return "failed", f"{type(error).__name__}: {error}", False
    if is_complete:
        return "finished", "", False
    return "stopped", "Stopped by a signal, after a checkpoint, at", False


def _numbers_of(record: StepRecord) -> dict[str, float]:
    """The numbers of a step, by name; waits for them."""
    return dict(zip(record.names, record.values.tolist(), strict=True))


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
