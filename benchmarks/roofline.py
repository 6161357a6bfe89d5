"""What a training step must cost on a GPU, counted on fake tensors: no weights and no GPU are needed.

  python -m benchmarks.roofline [--tflops 790] [--tbps 3.0] [--prompts 1 2 4 8] [--output FILE.json]

For the presets of Stable Diffusion 2.1 and MVDream, and each generator at its published size: FLOPs and bytes
by part, the time that they take at the least on a GPU of the given speeds, and memory.

A part's floor is the longer of two times: its FLOPs at the speed of half-precision matrix products (those in
float32 at half of it, as TF32 has), and its bytes at the speed of memory. Bytes are those of today's
operations, each by itself: fusing some would lower them. Memory is what tensors need at the same time; the
CUDA context, the allocator's rounding and the libraries' workspaces come on top.
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
PRESETS = {"sd21": "hyper-ingp-sd21.yaml", "mvdream": "hyper-ingp-mvdream.yaml"}
GENERATORS = ("hyper-ingp", "3dconv-net", "triplane-transformer")
# The parts of a step that are measured; guidance contains the denoiser.
PARTS = ("generator", "render", "encode", "denoiser", "guidance", "backward", "update")
TF32_SHARE = 0.5  # of the speed of half precision
Costs = Mapping[str, Mapping[str, float]]  # by part


def cases(numbers: Iterable[int]) -> Iterator[tuple[str, str, int]]:
    """(prior, generator, prompts), as `benchmarks.sd_steps` measures them."""
    for prompts in numbers:
        for generator in GENERATORS:
            yield "sd21", generator, prompts
        yield "mvdream", "hyper-ingp", prompts


def count(prior: str, generator: str, prompts: int) -> dict[str, Any]:
    """One case, on the fake GPU; call `pretend` first."""
    from benchmarks.fake_gpu.steps import take_step

    own = [f"generator.name={generator}", f"trainer.prompts_per_process={prompts}", "corpus=shapes16"]
    step = take_step(load_config(RunConfig, ROOT / "configs" / PRESETS[prior], own), prior)
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
    """FLOPs, bytes and operations of each part, and of the rest."""
    found = {name: asdict(costs[name]) for name in PARTS if name in costs}
    if "guidance" in found:
        found["guidance"] = _less(found["guidance"], found["denoiser"])
    rest = asdict(costs["step"])
    for part in found.values():
        rest = _less(rest, part)
    return found | {"rest": rest}


def _less(whole: Mapping[str, float], part: Mapping[str, float]) -> dict[str, float]:
    return {name: value - part[name] for name, value in whole.items()}


def floor_seconds(parts: Costs, *, tflops: float, tbps: float) -> dict[str, float]:
    """The least time of each part on a GPU of so many 10^12 FLOPs and bytes a second."""

    def least(cost: Mapping[str, float]) -> float:
        single = cost["flops_float32"]
        products = (cost["flops"] - single + single / TF32_SHARE) / (1e12 * tflops)
        return max(products, cost["traffic"] / (1e12 * tbps))

    return {name: least(cost) for name, cost in parts.items()}


def row(case: Mapping[str, Any], *, tflops: float, tbps: float) -> dict[str, Any]:
    """A case as a line of the table."""
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
    """Count the cases in another process, as the fake GPU changes the one that it is in."""
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
    given = parser.parse_args()
    from benchmarks.fake_gpu.pretend import pretend

    pretend()
    found = []
    for case in cases(given.prompts):
        found.append(count(*case))
        atomic_write_text(given.output, json.dumps(found, indent=2) + "\n")
    print(markdown([row(case, tflops=given.tflops, tbps=given.tbps) for case in found]))
    print(f"\nwritten to {given.output}")


if __name__ == "__main__":
    main()
