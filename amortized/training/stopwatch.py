"""Times within a step, without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Marks in the order of the device's work; read when that is done."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []
        self("")

    def __call__(self, name: str) -> None:
        """What was done since the last mark is called `name`."""
        if self.on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """The time of each name, summed. On a GPU only once its work is done, as when a result was read."""
        found: dict[str, float] = {}
        for (_, start), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            took = start.elapsed_time(end) / 1000 if self.on_cuda else end - start
            found[name] = found.get(name, 0.0) + took
        return found
