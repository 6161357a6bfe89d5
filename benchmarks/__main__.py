"""Measure the renderers, the hash grid and the training step against baselines in the same run.

  amortized bench
  amortized bench configs/quickstart.yaml --only rendering step

Prints tables and writes outputs/benchmarks/bench.json. Runs on the GPU if there is one (device=cpu for the
CPU). full-size, which takes minutes and 16 GiB, runs only if named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from amortized.cli import parser_for, run_command
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.files import atomic_write_text, in_project
from amortized.parallel import join_world
from benchmarks import full_size, hash_grids, rendering, splats, steps, timing

DEFAULT = ("rendering", "splats", "hash-grid", "step")
Rows = list[dict[str, str | float]]


def sections(config: RunConfig, device: torch.device) -> dict[str, Callable[[], Rows]]:
    """Return the measurements by name."""
    return {
        "rendering": lambda: rendering.measure(config.renderer),
        "splats": lambda: splats.measure(device),
        "hash-grid": lambda: hash_grids.measure(device),
        "step": lambda: [{"part": k, "value": v} for k, v in steps.measure(config, device).items()],
        "full-size": lambda: full_size.measure(device),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--only", nargs="+", choices=(*DEFAULT, "full-size"), default=DEFAULT)


def run(args: argparse.Namespace) -> int:
    """Run the chosen measurements, print and write their tables; return the exit status."""
    config = load_config(RunConfig, in_project(args.config), args.overrides)
    with join_world(config.device) as world:
        machine = timing.machine(world.device)
        results: dict[str, object] = {"machine": machine}
        print(", ".join(f"{key}: {value}" for key, value in machine.items()))
        for name, measure in sections(config, world.device).items():
            if name in args.only:
                results[name] = rows = measure()
                print(f"\n{name}\n\n{timing.markdown(rows)}")
    path = Path("outputs/benchmarks/bench.json")
    atomic_write_text(path, json.dumps(results, indent=2) + "\n")
    print(f"\nwritten to {path}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("python -m benchmarks", __doc__)
    add_arguments(parser)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
