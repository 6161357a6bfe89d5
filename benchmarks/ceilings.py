"""Measure a machine's peak speeds, of matrix products and memory copies, and describe the machine.

python -m benchmarks.ceilings [--device cuda] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from amortized.parallel import join_world
from benchmarks.timing import ResultsFile, machine, seconds

SIDE = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices
BYTES = {"cuda": 2**32, "cpu": 2**26}  # size of the copied buffer


def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the speed of square matrix products in TFLOP/s. Random inputs: zeros are faster."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b) / 1e12


def copy_tbps(device: torch.device) -> float:
    """Return the speed of a copy within device memory in TB/s, bytes read plus bytes written."""
    source = torch.empty(BYTES[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source)) / 1e12


def measure(device: torch.device) -> dict[str, float]:
    """Return all speeds by name."""
    dtypes = {"float32": torch.float32}
    if device.type == "cuda":
        dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16} | dtypes
    speeds = {f"{name}, TFLOP/s": matrix_tflops(device, dtype) for name, dtype in dtypes.items()}
    speeds["copy, TB/s"] = copy_tbps(device)
    return {name: round(value, 3) for name, value in speeds.items()}


def about(device: torch.device) -> dict[str, str | float]:
    """Return `timing.machine` with library versions and details of the GPU."""
    import diffusers
    import transformers

    facts = machine(device) | {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    facts["cores"] = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {"GPU memory, GiB": round(gpu.total_memory / 2**30, 1), "CUDA": str(torch.version.cuda)}
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ceilings", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check/machine.json"))
    args = parser.parse_args()
    with join_world(args.device) as world:
        results = ResultsFile(args.output, about(world.device))
        for name, value in measure(world.device).items():
            results.add({"ceiling": name, "measured": value})
    results.summarize(", ".join(f"{row['ceiling']}: {row['measured']}" for row in results.rows))


if __name__ == "__main__":
    main()
