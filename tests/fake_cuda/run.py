"""Steps on the fake GPU, in a process of its own: JSON cases in, a line of JSON for each out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from amortized.commands.compose import RunConfig
from amortized.config import load_config
from benchmarks.fake_gpu.pretend import pretend
from benchmarks.fake_gpu.steps import take_step

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    pretend()
    for case in json.loads(sys.stdin.read()):
        found: dict[str, object] = {"name": case["name"]}
        try:
            config = load_config(RunConfig, ROOT / "configs" / case["preset"], case["overrides"])
            step = take_step(config, case["prior"])
            found["waits"] = [[kind, place, times] for (kind, place), times in step.waits.items()]
            found["operations"] = step.costs["step"].operations
            found["flops"] = step.costs["step"].flops
            found["peak"] = step.costs["step"].peak
        except Exception as error:  # of any kind: the test says which case it was
            found["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
