"""Take training steps on the fake GPU: reads a JSON list of cases from stdin, prints one JSON line per case.

Runs in a separate process, because `pretend` patches PyTorch globally.
"""

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
        result: dict[str, object] = {"name": case["name"]}
        try:
            config = load_config(RunConfig, ROOT / "configs" / case["preset"], case["overrides"])
            step = take_step(config, case["prior"])
            result["waits"] = [[kind, place, count] for (kind, place), count in step.waits.items()]
            result["operations"] = step.costs["step"].operations
            result["flops"] = step.costs["step"].flops
            result["peak"] = step.costs["step"].peak
        except Exception as error:  # any error: the test reports it with the name of the case
            result["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
