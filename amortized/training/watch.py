"""Finished steps: logged, and judged whether going on is of any use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from amortized.training.distributed import World
from amortized.training.logs import RunLog
from amortized.training.sampler import batch_digest
from amortized.training.settings import TrainerConfig


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why, and what the last good checkpoint is."""


@dataclass(frozen=True)
class Record:
    """What a finished step leaves: numbers still on the device, averaged over processes."""

    step: int  # counted from 1
    names: list[str]
    values: Tensor  # one per name
    digests: Tensor  # int64, one per slot of this process


class Watch:
    """Reads records in order, alike on every process; the main one also logs them into `folder`."""

    def __init__(
        self,
        config: TrainerConfig,
        world: World,
        folder: Path,
        *,
        prompts_seen: Callable[[int], int],
        last_good: Callable[[], str],
        start: int,
        quiet: bool,
    ) -> None:
        self.config, self.world, self.folder = config, world, folder
        self.prompts_seen, self.last_good = prompts_seen, last_good
        self.empty_for = self.full_for = 0  # steps in a row without an object, or with nothing else
        self.log = RunLog(folder, start=start, steps=config.steps, quiet=quiet) if world.is_main else None

    def __call__(self, record: Record) -> bool:
        """Whether a signal asks for an end. Raises TrainingStopped where going on is of no use."""
        numbers = dict(zip(record.names, record.values.tolist(), strict=True))
        interrupted = numbers.pop("interrupted") > 0
        self._write(record, numbers)
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

    def note(self, text: str) -> None:
        """Log a sentence about the run."""
        if self.log is not None:
            self.log.note(text)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

    def _write(self, record: Record, numbers: dict[str, float]) -> None:
        seen = self.prompts_seen(record.step)
        if record.step % self.config.log_every == 0:
            digest = batch_digest(self.world.gather(record.digests.to(self.world.device)))
            if self.log is not None:
                self.log.write(record.step, {**numbers, "prompts_seen": seen, "batch_digest": digest})
        if self.log is not None:
            self.log.advance(loss=numbers["loss"], opacity=numbers["opacity"], prompts=seen)
