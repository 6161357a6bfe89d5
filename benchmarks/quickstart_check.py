"""The quickstart on this device, from its preset to its scores, within a time.

    python -m benchmarks.quickstart_check [--device cuda] [--output FILE.json] [--limit SECONDS]

Trains into a folder beside the output, anew, and judges what the time allowed. Turntables are left out: they
need av, which a bare machine lacks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import ceilings
from benchmarks.timing import Findings

ROOT = Path(__file__).resolve().parents[1]
STOPPED_EARLY = 75  # the exit status of a training that a signal ended, saved
TRAINING_SHARE = 0.6  # of the limit
# On a CPU only the way is walked: what it would learn takes minutes.
FEW_STEPS = ("trainer.steps=20", "checkpointing.every=10", "monitoring.preview_every=20")
SMALL = ("evaluation.views=2", "evaluation.grid=16", "--limit=4")


def train(folder: Path, device: str, limit_s: float) -> float:
    """Train and return the seconds; at the limit, signal it to save and stop."""
    changes = () if device.startswith("cuda") else FEW_STEPS
    command = [sys.executable, "train.py", "configs/quickstart.yaml", f"device={device}", f"output={folder}"]
    begun = time.perf_counter()
    process = subprocess.Popen([*command, *changes], cwd=ROOT)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    if status not in (0, STOPPED_EARLY):
        raise SystemExit(f"train.py ended with status {status}")
    return time.perf_counter() - begun


def evaluate(folder: Path, device: str) -> float:
    """Evaluate, in seconds."""
    changes = () if device.startswith("cuda") else SMALL
    command = [sys.executable, "evaluate.py", str(folder), "evaluation.turntable_frames=0", *changes]
    begun = time.perf_counter()
    if status := subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit(f"evaluate.py ended with status {status}")
    return time.perf_counter() - begun


def steps_of(folder: Path) -> dict[str, float]:
    """Steps reached, and a step's time and parts in milliseconds: medians of the last half."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    late = lines[len(lines) // 2 :]
    names = [name for name in late[-1] if name.startswith("time/")]
    parts = {name: 1000 * statistics.median(line[name] for line in late) for name in names}
    found = {f"{name.removeprefix('time/')}, ms": round(value, 2) for name, value in parts.items()}
    return {"steps": lines[-1]["step"], "step, ms": round(sum(parts.values()), 2), **found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quickstart_check", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check/quickstart.json"))
    parser.add_argument("--limit", type=float, default=110.0, help="seconds, for all of it")
    given = parser.parse_args()
    findings = Findings(given.output, ceilings.about(torch.device(given.device)))
    folder = given.output.resolve().parent / "quickstart"
    shutil.rmtree(folder, ignore_errors=True)  # an existing run would only be resumed
    seconds = train(folder, given.device, TRAINING_SHARE * given.limit)
    told = steps_of(folder)
    findings.add({"part": "training, s", "value": round(seconds, 1)})
    for name, value in told.items():
        findings.add({"part": name, "value": value})
    findings.add({"part": "evaluation, s", "value": round(evaluate(folder, given.device), 1)})
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    for name, interval in results["metrics"].items():
        findings.add(
            {
                "part": name,
                "value": round(interval["mean"], 3),
                "low": interval["low"],
                "high": interval["high"],
            }
        )
    scores = {name: results["metrics"][name]["mean"] for name in ("recall_at_1", "iou")}
    said = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    findings.sum_up(f"{told['steps']} steps in {seconds:.0f} s, {told['step, ms']} ms each; {said}")


if __name__ == "__main__":
    main()
