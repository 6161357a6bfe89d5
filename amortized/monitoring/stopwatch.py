"""Times within a step, measured without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Marks in the order of the device's work, read after that work is done."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []
        self("")

    def __call__(self, name: str) -> None:
        """End the section `name`: the work since the previous mark."""
        if self.on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Seconds per section name, summed. On a GPU, call it only after a result of the work was read."""
        totals: dict[str, float] = {}
        for (_, start), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            elapsed = start.elapsed_time(end) / 1000 if self.on_cuda else end - start
            totals[name] = totals.get(name, 0.0) + elapsed
        return totals
