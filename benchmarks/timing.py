"""Wall times, and what machine they are of."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from amortized.evaluation.metrics import Interval


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of an action after one warm-up; waits for the GPU where there is one."""
    times = []
    for _ in range(repeats + 1):
        start = now()
        action()
        times.append(now() - start)
    return statistics.median(times[1:])


def now() -> float:
    """Time in seconds at which everything asked of the device so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: torch.device) -> dict[str, str | float]:
    """What figures are to be read against; the matrix speed tells a shared machine from a free one."""
    a = torch.randn(1024, 1024, device=device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
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
