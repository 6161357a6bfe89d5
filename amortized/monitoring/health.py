"""Warnings that do not stop a run: loss spikes and straggling ranks."""

from __future__ import annotations

import statistics
from collections import deque

# Distillation losses are noisy: in long runs, 12 median absolute
# deviations separate spikes from noise.
SPIKE_DEVIATIONS = 12.0
STRAGGLER_RATIO, STRAGGLER_S = 1.5, 0.05  # a rank lags if it exceeds the others' median by both
WINDOW = 100  # steps
MIN_STEPS_BETWEEN_WARNINGS = 100


class LossSpikes:
    """Detects losses far above those of recent steps."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.warned_at = -MIN_STEPS_BETWEEN_WARNINGS

    def __call__(self, step: int, loss: float) -> str | None:
        """Add the loss of a step; returns a warning if it is a spike."""
        previous = list(self.recent)
        self.recent.append(loss)
        if len(previous) < WINDOW // 2 or step - self.warned_at < MIN_STEPS_BETWEEN_WARNINGS:
            return None
        median = statistics.median(previous)
        deviation = statistics.median(abs(value - median) for value in previous)
        if loss - median <= SPIKE_DEVIATIONS * max(deviation, 1e-3 * abs(median)):
            return None
        self.warned_at = step
        return f"step {step}: loss spike: {loss:.4g}, the median of the last {len(previous)} was {median:.4g}"


class Stragglers:
    """Detects ranks that are slower than the others over many steps."""

    def __init__(self) -> None:
        self.recent: deque[list[float]] = deque(maxlen=WINDOW // 5)
        self.warned_at = -MIN_STEPS_BETWEEN_WARNINGS

    def __call__(self, step: int, seconds: list[float]) -> str | None:
        """Add each rank's own time for a step, without waiting; returns a warning if one rank lags."""
        self.recent.append(seconds)
        is_full = len(self.recent) == self.recent.maxlen
        if len(seconds) < 2 or not is_full or step - self.warned_at < MIN_STEPS_BETWEEN_WARNINGS:
            return None
        medians = [statistics.median(times) for times in zip(*self.recent, strict=True)]
        slowest = max(range(len(medians)), key=medians.__getitem__)
        others = statistics.median(value for rank, value in enumerate(medians) if rank != slowest)
        if medians[slowest] <= max(STRAGGLER_RATIO * others, others + STRAGGLER_S):
            return None
        self.warned_at = step
        return (
            f"step {step}: rank {slowest} is a straggler: it takes {medians[slowest]:.3g} s per step, "
            f"the others {others:.3g} s and wait for it"
        )
