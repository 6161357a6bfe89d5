"""What a machine can do at best: matrix products and copies, and what it is.

python -m benchmarks.ceilings [--device cuda] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from amortized.parallel import join_world
from benchmarks.timing import Findings, machine, seconds

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices
BYTES = {"cuda": 2**32, "cpu": 2**26}  # of the copy, written and read each


def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Products of square matrices, 10^12 operations a second. Of random numbers: of zeros it is faster."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b) / 1e12


def copy_tbps(device: torch.device) -> float:
    """A copy within the device's memory, 10^12 bytes a second, read and written bytes together."""
    source = torch.empty(BYTES[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source)) / 1e12


def measure(device: torch.device) -> dict[str, float]:
    """All of them."""
    dtypes = {"float32": torch.float32}
    if device.type == "cuda":
        dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16} | dtypes
    found = {f"{name}, TFLOP/s": matrix_tflops(device, dtype) for name, dtype in dtypes.items()}
    return {name: round(value, 3) for name, value in (found | {"copy, TB/s": copy_tbps(device)}).items()}


def about(device: torch.device) -> dict[str, str | float]:
    """`timing.machine`, with details of the GPU and the versions of the libraries."""
    import diffusers
    import transformers

    found = machine(device) | {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    found["cores"] = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"GPU memory, GiB": round(card.total_memory / 2**30, 1), "CUDA": str(torch.version.cuda)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ceilings", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check/machine.json"))
    given = parser.parse_args()
    with join_world(given.device) as world:
        findings = Findings(given.output, about(world.device))
        for name, value in measure(world.device).items():
            findings.add({"ceiling": name, "measured": value})
    findings.sum_up(", ".join(f"{row['ceiling']}: {row['measured']}" for row in findings.rows))


if __name__ == "__main__":
    main()
