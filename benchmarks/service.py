"""Measure the cost of checkpoints, and weak scaling from one process to two.

  python -m benchmarks.service

Checkpoints: one training alternates blocks of 50 steps without a checkpoint, with one written in the
background during the block, and with one waited for before the block. Weak scaling: the same number of
prompts per process on one process, and on two, with one core each. Ratios are of medians in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from amortized.commands.compose import RunConfig, build_parts, guidance_of, load_corpus
from amortized.config import load_config
from amortized.parallel import World
from amortized.training import Trainer
from benchmarks import timing

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("outputs/service")
BLOCK, BLOCKS = 50, 5
# State of the usual size: generator, EMA and moments, with a hash grid of published length.
GRID = {"num_levels": 8, "features_per_level": 4, "log2_table_size": 19, "base_resolution": 8, "growth": 1.9}
LARGE = (
    *(f"generator.grid.{key}={value}" for key, value in GRID.items()),
    "trainer.prompts_per_process=2",
    f"output={FOLDER / 'stall'}",
)
STEPS, WARMUP_STEPS, ROUNDS = 50, 15, 3  # of weak scaling


def build_trainer() -> Trainer:
    config = load_config(RunConfig, ROOT / "configs/quickstart.yaml", LARGE)
    config = replace(config, trainer=replace(config.trainer, steps=10_000, ema_decay=0.98))
    corpus, device = load_corpus(config), torch.device("cpu")
    prior, bank, generator = build_parts(config, device)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    world = World(device=device)
    return Trainer(config, world=world, corpus=corpus, guidance=guidance, bank=bank, generator=generator)


def checkpoint_stall() -> list[dict[str, str | float]]:
    """Return the step times without checkpoint, with one in the background, and with one waited for.

    The step uses one core of two or more, as a GPU's step leaves cores free for other threads.
    """
    torch.set_num_threads(1)
    trainer = build_trainer()
    times: dict[str, list[float]] = {"none": [], "in the background": [], "waited for": []}
    step = 0
    for turn in range(BLOCKS + 1):
        for name, durations in times.items():
            start = time.perf_counter()
            if name != "none":
                trainer.save(step)
            if name == "waited for":
                trainer.checkpoints.wait()
            for _ in range(BLOCK):
                trainer.step(step, interrupted=False)
                step += 1
            duration = (time.perf_counter() - start) / BLOCK
            trainer.checkpoints.wait()
            if turn:  # the first warms up
                durations.append(duration)
    trainer.prefetcher.close()
    trainer.checkpoints.close()
    newest = max((FOLDER / "stall/checkpoints").iterdir(), key=lambda path: path.name.startswith("step"))
    size = sum(file.stat().st_size for file in newest.iterdir()) / 2**20
    base = statistics.median(times["none"])
    return [
        {
            "checkpoint every 50 steps": name,
            "size, MiB": round(size) if name != "none" else 0,
            "step, ms": round(1e3 * statistics.median(durations), 1),
            "relative to none": round(statistics.median(durations) / base, 3),
        }
        for name, durations in times.items()
    ]


def weak_scaling() -> list[dict[str, str | float]]:
    """Return the step times of one process, two independent ones, and two of one run, with one core each."""
    cases = {"one": (1, False), "two independent": (2, False), "two of one run": (2, True)}
    durations: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (size, one_run) in cases.items():
            durations[name].append(_step_seconds(name.replace(" ", "-"), size, one_run))
    medians = {name: statistics.median(values) for name, values in durations.items()}
    return [
        {
            "processes": name,
            "prompts per step": 8 if cases[name][1] else 4,
            "step, ms": round(1e3 * duration, 1),
            "range, ms": f"{1e3 * min(durations[name]):.0f} to {1e3 * max(durations[name]):.0f}",
            "efficiency": round(medians["one"] / duration, 3),
        }
        for name, duration in medians.items()
    ]


def _step_seconds(name: str, size: int, one_run: bool) -> float:
    """Return the median step time of the slowest of `size` concurrent processes."""
    processes, folders = [], []
    for rank in range(size):
        folder = FOLDER / (name if one_run else f"{name}-{rank}")
        if folder not in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folders.append(folder)
        command = [sys.executable, "train.py", "configs/quickstart.yaml", f"output={folder}"]
        command += [f"trainer.steps={STEPS}", "trainer.prompts_per_process=4"]
        command += ["monitoring.preview_every=1000"]
        rank_variables = (
            {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)} if one_run else {}
        )
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611", "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                ["taskset", "-c", str(rank), *command],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **shared, **rank_variables},
            )
        )
    assert all(process.wait() == 0 for process in processes), "a process failed: run its command by hand"
    return max(_median_step(folder) for folder in folders)


def _median_step(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(
        sum(value for name, value in line.items() if name.startswith("time/"))
        for line in lines[WARMUP_STEPS:]
        if "loss" in line  # not the scores of previews
    )


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    machine = timing.machine(torch.device("cpu"))
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    for measure in (weak_scaling, checkpoint_stall):
        print(f"\n{timing.markdown(measure())}", flush=True)


if __name__ == "__main__":
    main()
