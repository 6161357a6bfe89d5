"""Measure wall times, describe the machine, and write results as tables and JSON."""

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
    """Return the median wall time of an action after one warm-up; syncs with the GPU, if there is one."""
    times = []
    for _ in range(repeats + 1):
        start = now()
        action()
        times.append(now() - start)
    return statistics.median(times[1:])


def now() -> float:
    """Return the time in seconds, after waiting for all queued work of the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: torch.device) -> dict[str, str | float]:
    """Describe the machine of a measurement; its matrix speed shows whether other jobs shared it."""
    a = torch.randn(1024, 1024, device=device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "float32 matmul, GFLOP/s": round(2 * 1024**3 / seconds(lambda: a @ a) / 1e9, 1),
    }


def processor() -> str:
    """Return the CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table with the columns of all rows; missing cells are empty."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[format_cell(row.get(name, "")) for name in head] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])


def format_cell(value: object) -> str:
    """Format a table's cell: mean [low, high] for intervals."""
    if isinstance(value, Interval):
        return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if isinstance(value, list):
        return ", ".join(f"{number:.3f}" for number in value)
    return str(value)


class ResultsFile:
    """Rows, a summary and the machine, in a JSON file that is complete after every call.

    A benchmark that is stopped halfway leaves the rows measured so far.
    """

    def __init__(self, path: Path, machine: Mapping[str, object]) -> None:
        self.path, self.machine = path, dict(machine)
        self.rows: list[dict[str, Any]] = []
        self.summary = ""
        self._write()

    def add(self, row: Mapping[str, object]) -> None:
        """Append, print and write a row."""
        self.rows.append(dict(row))
        print(", ".join(f"{name}: {format_cell(value)}" for name, value in row.items()), flush=True)
        self._write()

    def summarize(self, sentence: str) -> None:
        """Set and write the summary."""
        self.summary = sentence
        self._write()

    def _write(self) -> None:
        content = json_safe({"machine": self.machine, "summary": self.summary, "rows": self.rows})
        atomic_write_text(self.path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def json_safe(value: Any) -> Any:
    """Return the value with non-finite floats as strings, since JSON has none."""
    if isinstance(value, dict):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list):
        return [json_safe(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def waits(action: Callable[[], object]) -> list[str]:
    """Return FILE:LINE of each time that an action made the host wait for the GPU, as reported by PyTorch."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    syncs = [warning for warning in recorded if "called a synchronizing" in str(warning.message)]
    return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in syncs]
