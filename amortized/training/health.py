"""What is worth a word while a run goes well: losses far from the others, and processes that lag."""

from __future__ import annotations

import statistics
from collections import deque

SPREADS = 12.0  # median absolute deviations: losses of distillation are noisy
LAG, LAG_S = 1.5, 0.05  # times the median process, and seconds
WINDOW = 100
QUIET = 100  # steps between two words about the same


class Spikes:
    """Losses that are far above those of the last steps."""

    def __init__(self) -> None:
        self.last: deque[float] = deque(maxlen=WINDOW)
        self.spoke = -QUIET

    def __call__(self, step: int, loss: float) -> str | None:
        """A sentence where the loss of a step is one."""
        known = list(self.last)
        self.last.append(loss)
        if len(known) < WINDOW // 2 or step - self.spoke < QUIET:
            return None
        usual = statistics.median(known)
        spread = statistics.median(abs(value - usual) for value in known)
        if loss - usual <= SPREADS * max(spread, 1e-3 * abs(usual)):
            return None
        self.spoke = step
        return f"step {step}: a loss of {loss:.4g}, where the last {len(known)} were about {usual:.4g}"


class Stragglers:
    """Processes that are slower than the others, step after step."""

    def __init__(self) -> None:
        self.last: deque[list[float]] = deque(maxlen=WINDOW // 5)
        self.spoke = -QUIET

    def __call__(self, step: int, seconds: list[float]) -> str | None:
        """A sentence where one lags; `seconds` are those that each spent on its own part of the step."""
        self.last.append(seconds)
        full = len(self.last) == self.last.maxlen
        if len(seconds) < 2 or not full or step - self.spoke < QUIET:
            return None
        usual = [statistics.median(own) for own in zip(*self.last, strict=True)]
        slowest = max(range(len(usual)), key=usual.__getitem__)
        others = statistics.median(value for rank, value in enumerate(usual) if rank != slowest)
        if usual[slowest] <= max(LAG * others, others + LAG_S):
            return None
        self.spoke = step
        return (
            f"step {step}: process {slowest} takes {usual[slowest]:.3g} s for its part of a step, the others "
            f"{others:.3g} s: all wait for it"
        )
