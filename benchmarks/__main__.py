"""Renderer, hash grid and training step, measured against stated baselines in one run.

  python -m benchmarks [CONFIG] [KEY=VALUE ...] [--only rendering hash-grid step full-size]

Prints tables and writes outputs/benchmarks/bench.json. Runs on the GPU where there is one (device=cpu for
the CPU). full-size, only where it is asked for, needs minutes and 16 GiB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from amortized.cli import one_sentence_errors
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.files import atomic_write_text
from amortized.parallel import join_world
from benchmarks import full_size, hash_grids, rendering, steps, timing

DEFAULT = ("rendering", "hash-grid", "step")
Rows = list[dict[str, str | float]]


def sections(config: RunConfig, device: torch.device) -> dict[str, Callable[[], Rows]]:
    """What can be measured, by name."""
    return {
        "rendering": lambda: rendering.measure(config.renderer),
        "hash-grid": lambda: hash_grids.measure(device),
        "step": lambda: [{"part": k, "value": v} for k, v in steps.measure(config, device).items()],
        "full-size": lambda: full_size.measure(device),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--only", nargs="+", choices=(*DEFAULT, "full-size"), default=DEFAULT)
    given = parser.parse_intermixed_args(argv)
    with one_sentence_errors("benchmarks"):
        config = load_config(RunConfig, given.config, given.overrides)
        with join_world(config.device) as world:
            machine = timing.machine(world.device)
            found: dict[str, object] = {"machine": machine}
            print(", ".join(f"{key}: {value}" for key, value in machine.items()))
            for name, measure in sections(config, world.device).items():
                if name in given.only:
                    found[name] = rows = measure()
                    print(f"\n{name}\n\n{timing.markdown(rows)}")
        path = Path("outputs/benchmarks/bench.json")
        atomic_write_text(path, json.dumps(found, indent=2) + "\n")
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
