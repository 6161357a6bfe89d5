"""Run the quickstart on this device within a time limit, from its preset to its scores.

    python -m benchmarks.quickstart_check [--device cuda] [--output FILE.json] [--limit SECONDS]

Trains from scratch into a folder next to the output, as far as the time allows, and evaluates the result.
There are no turntables: they need av, which a bare machine lacks.
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
from benchmarks.timing import ResultsFile

ROOT = Path(__file__).resolve().parents[1]
STOPPED_EARLY = 75  # exit status of a training that saved and stopped after a signal
TRAINING_SHARE = 0.6  # of the limit
# A CPU only exercises the code path: learning something would take minutes.
FEW_STEPS = ("trainer.steps=20", "checkpointing.every=10", "monitoring.preview_every=20")
SMALL = ("evaluation.views=2", "evaluation.grid=16", "--limit=4")


def train(folder: Path, device: str, limit_s: float) -> float:
    """Train and return the seconds; at the limit, signal the process to save and stop."""
    changes = () if device.startswith("cuda") else FEW_STEPS
    command = [sys.executable, "train.py", "configs/quickstart.yaml", f"device={device}", f"output={folder}"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *changes], cwd=ROOT)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    if status not in (0, STOPPED_EARLY):
        raise SystemExit(f"train.py ended with status {status}")
    return time.perf_counter() - start


def evaluate(folder: Path, device: str) -> float:
    """Evaluate the run and return the seconds."""
    changes = () if device.startswith("cuda") else SMALL
    command = [
        sys.executable,
        "evaluate.py",
        str(folder),
        "evaluation.turntable_frames=0",
        "evaluation.objects=0",
        *changes,
    ]
    command += ["--output", str(folder / "evaluation")]
    start = time.perf_counter()
    if status := subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit(f"evaluate.py ended with status {status}")
    return time.perf_counter() - start


def steps_of(folder: Path) -> dict[str, float]:
    """Return the number of steps, and the median times of a step and its parts over the last half of them."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]  # not the scores of previews
    late = lines[len(lines) // 2 :]
    names = [name for name in late[-1] if name.startswith("time/")]
    parts = {name: 1000 * statistics.median(line[name] for line in late) for name in names}
    columns = {f"{name.removeprefix('time/')}, ms": round(value, 2) for name, value in parts.items()}
    return {"steps": lines[-1]["step"], "step, ms": round(sum(parts.values()), 2), **columns}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quickstart_check", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check/quickstart.json"))
    parser.add_argument("--limit", type=float, default=110.0, help="seconds in total")
    args = parser.parse_args()
    results_file = ResultsFile(args.output, ceilings.about(torch.device(args.device)))
    folder = args.output.resolve().parent / "quickstart"
    shutil.rmtree(folder, ignore_errors=True)  # an existing run would only be resumed
    seconds = train(folder, args.device, TRAINING_SHARE * args.limit)
    steps = steps_of(folder)
    results_file.add({"part": "training, s", "value": round(seconds, 1)})
    for name, value in steps.items():
        results_file.add({"part": name, "value": value})
    results_file.add({"part": "evaluation, s", "value": round(evaluate(folder, args.device), 1)})
    results = json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    for name, interval in results["metrics"].items():
        results_file.add(
            {
                "part": name,
                "value": round(interval["mean"], 3),
                "low": interval["low"],
                "high": interval["high"],
            }
        )
    scores = {name: results["metrics"][name]["mean"] for name in ("recall_at_1", "iou")}
    score_text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    results_file.summarize(
        f"{steps['steps']} steps in {seconds:.0f} s, {steps['step, ms']} ms each; {score_text}"
    )


if __name__ == "__main__":
    main()
