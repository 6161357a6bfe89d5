"""Wall times, and what machine they are of."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from amortized.evaluation.metrics import Interval
from amortized.files import atomic_write_text


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of an action after one warm-up; syncs with the GPU, if there is one."""
    times = []
    for _ in range(repeats + 1):
        start = now()
        action()
        times.append(now() - start)
    return statistics.median(times[1:])


def now() -> float:
    """The time in seconds, after waiting for all queued work of the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: torch.device) -> dict[str, str | float]:
    """The machine of a measurement; its matrix speed shows whether it was shared with other work."""
    a = torch.randn(1024, 1024, device=device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "float32 matmul, GFLOP/s": round(2 * 1024**3 / seconds(lambda: a @ a) / 1e9, 1),
    }


def processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A table of all columns, in the order in which they are met; what a row lacks stays empty."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[shown(row.get(name, "")) for name in head] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])


def shown(value: object) -> str:
    """As tables have it."""
    if isinstance(value, Interval):
        return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if isinstance(value, list):
        return ", ".join(f"{number:.3f}" for number in value)
    return str(value)


class Findings:
    """Rows and what they are to be read against, in a JSON file from the first row on.

    What is stopped halfway leaves what it has found.
    """

    def __init__(self, path: Path, machine: Mapping[str, object]) -> None:
        self.path, self.machine = path, dict(machine)
        self.rows: list[dict[str, Any]] = []
        self.summary = ""
        self._write()

    def add(self, row: Mapping[str, object]) -> None:
        """One row more, printed too."""
        self.rows.append(dict(row))
        print(", ".join(f"{name}: {shown(value)}" for name, value in row.items()), flush=True)
        self._write()

    def sum_up(self, sentence: str) -> None:
        """What the rows say, in a few words."""
        self.summary = sentence
        self._write()

    def _write(self) -> None:
        found = plain({"machine": self.machine, "summary": self.summary, "rows": self.rows})
        atomic_write_text(self.path, json.dumps(found, indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The same for JSON, which cannot express non-finite numbers."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def waits(action: Callable[[], object]) -> list[str]:
    """FILE:LINE of every time that an action made the host wait for the GPU, as far as PyTorch can tell."""
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in met if "called a synchronizing" in str(warning.message)]
    return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]
