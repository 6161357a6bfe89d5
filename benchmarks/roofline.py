"""Compute the lower bound of a training step on a GPU, on fake tensors: without weights or a GPU.

  python -m benchmarks.roofline [--tflops 790] [--tbps 3.0] [--prompts 1 2 4 8] [--output FILE.json]

Counts FLOPs and bytes by part, their minimal time on a GPU of the given speeds, and memory, for the presets
of Stable Diffusion 2.1 and MVDream and each generator at its published size.

The floor of a part is the longer of two times: its FLOPs at the speed of half-precision matrix products
(float32 ones at half of it, as TF32), and its bytes at the memory bandwidth. Bytes are counted per operation
as executed today: fusion would lower them. Memory is the peak of live tensors; the CUDA context, the
allocator's rounding and library workspaces come on top.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.files import atomic_write_text
from amortized.training.metering import Cost
from benchmarks.timing import markdown

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {"sd21": "published/asd-sd-hyper-ingp-mg15.yaml", "mvdream": "hyper-ingp-mvdream.yaml"}
GENERATORS = ("hyper-ingp", "3dconv-net", "triplane-transformer")
# Sections of a step; the count of guidance includes the denoiser's.
PARTS = ("generator", "render", "encode", "denoiser", "guidance", "backward", "update")
TF32_SPEED = 0.5  # relative to half precision
Costs = Mapping[str, Mapping[str, float]]  # by part


def cases(numbers: Iterable[int]) -> Iterator[tuple[str, str, int]]:
    """Yield (prior, generator, prompts), the cases that `benchmarks.sd_steps` measures."""
    for prompts in numbers:
        for generator in GENERATORS:
            yield "sd21", generator, prompts
        yield "mvdream", "hyper-ingp", prompts


def count(prior: str, generator: str, prompts: int) -> dict[str, Any]:
    """Count a case on the fake GPU; call `pretend` first."""
    from benchmarks.fake_gpu.steps import take_step

    overrides = [f"generator.name={generator}", f"trainer.prompts_per_process={prompts}", "corpus=shapes16"]
    step = take_step(load_config(RunConfig, ROOT / "configs" / PRESETS[prior], overrides), prior)
    return {
        "prior": prior,
        "generator": generator,
        "prompts": prompts,
        "parts": by_part(step.costs),
        "memory before, GiB": step.resident / 2**30,
        "memory, GiB": step.costs["step"].peak / 2**30,
        "host waits": sum(step.waits.values()),
    }


def by_part(costs: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    """Return FLOPs, bytes and operations of each part, without overlaps, and of the rest."""
    parts = {name: asdict(costs[name]) for name in PARTS if name in costs}
    if "guidance" in parts:
        parts["guidance"] = _subtract(parts["guidance"], parts["denoiser"])
    rest = asdict(costs["step"])
    for part in parts.values():
        rest = _subtract(rest, part)
    return parts | {"rest": rest}


def _subtract(total: Mapping[str, float], part: Mapping[str, float]) -> dict[str, float]:
    return {name: value - part[name] for name, value in total.items()}


def floor_seconds(parts: Costs, *, tflops: float, tbps: float) -> dict[str, float]:
    """Return the minimal seconds of each part on a GPU of `tflops` TFLOP/s and `tbps` TB/s."""

    def floor(cost: Mapping[str, float]) -> float:
        single = cost["flops_float32"]
        compute_s = (cost["flops"] - single + single / TF32_SPEED) / (1e12 * tflops)
        return max(compute_s, cost["traffic"] / (1e12 * tbps))

    return {name: floor(cost) for name, cost in parts.items()}


def row(case: Mapping[str, Any], *, tflops: float, tbps: float) -> dict[str, Any]:
    """Return a case as a row of the table."""
    parts = case["parts"]
    floors = floor_seconds(parts, tflops=tflops, tbps=tbps)
    total = sum(floors.values())
    return {
        "prior": case["prior"],
        "generator": case["generator"],
        "prompts": case["prompts"],
        "TFLOP": round(sum(cost["flops"] for cost in parts.values()) / 1e12, 2),
        "GB moved": round(sum(cost["traffic"] for cost in parts.values()) / 1e9, 1),
        "operations": int(sum(cost["operations"] for cost in parts.values())),
        **{f"{name}, ms": round(1000 * seconds, 2) for name, seconds in floors.items()},
        "floor, ms": round(1000 * total, 1),
        "denoiser's share": f"{floors.get('denoiser', 0.0) / total:.0%}",
        "memory, GiB": round(case["memory, GiB"], 1),
    }


def start(output: Path, numbers: Iterable[int]) -> subprocess.Popen[bytes]:
    """Start counting the cases in another process, since the fake GPU changes its process for good."""
    command = [sys.executable, "-m", "benchmarks.roofline", "--output", str(output), "--prompts"]
    return subprocess.Popen(
        [*command, *map(str, numbers)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tflops", type=float, default=790.0, help="of half precision (H100: %(default)s)")
    parser.add_argument(
        "--tbps", type=float, default=3.0, help="of memory, 10^12 bytes a second (%(default)s)"
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/roofline.json"))
    args = parser.parse_args()
    from benchmarks.fake_gpu.pretend import pretend

    pretend()
    counts = []
    for case in cases(args.prompts):
        counts.append(count(*case))
        atomic_write_text(args.output, json.dumps(counts, indent=2) + "\n")
    print(markdown([row(case, tflops=args.tflops, tbps=args.tbps) for case in counts]))
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
