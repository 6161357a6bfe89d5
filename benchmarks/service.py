"""What safety and company cost a run: steps with checkpoints against none, and two processes against one.

  python -m benchmarks.service

Checkpoints: one training, blocks of 50 steps by turns: without a checkpoint, with one written in the
background from the block's start on, with one that is waited for. Company (weak scaling): the same share of
prompts on one process that has a core, and on two that have one each. A ratio is of medians in this one run.
"""

from __future__ import annotations

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
# A state of some size: generator, average and moments of a hash grid of full length.
GRID = {"num_levels": 8, "features_per_level": 4, "log2_table_size": 19, "base_resolution": 8, "growth": 1.9}
LARGE = (
    *(f"generator.grid.{key}={value}" for key, value in GRID.items()),
    "trainer.prompts_per_process=2",
    f"output={FOLDER / 'stall'}",
)
STEPS, SKIPPED, TURNS = 50, 15, 3  # of weak scaling


def trainer_of() -> Trainer:
    config = load_config(RunConfig, ROOT / "configs/quickstart.yaml", LARGE)
    config = replace(config, trainer=replace(config.trainer, steps=10_000, ema_decay=0.98))
    corpus, device = load_corpus(config), torch.device("cpu")
    prior, bank, generator = build_parts(config, device)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    world = World(device=device)
    return Trainer(config, world=world, corpus=corpus, guidance=guidance, bank=bank, generator=generator)


def stall() -> list[dict[str, str | float]]:
    """Blocks of steps by turns: none, in the background, waited for. A step keeps to one core of two or more,
    as one of a GPU leaves the cores to others."""
    torch.set_num_threads(1)
    trainer = trainer_of()
    times: dict[str, list[float]] = {"none": [], "in the background": [], "waited for": []}
    step = 0
    for turn in range(BLOCKS + 1):
        for name, found in times.items():
            start = time.perf_counter()
            if name != "none":
                trainer.save(step)
            if name == "waited for":
                trainer.checkpoints.wait()
            for _ in range(BLOCK):
                trainer.step(step, interrupted=False)
                step += 1
            took = (time.perf_counter() - start) / BLOCK
            trainer.checkpoints.wait()
            if turn:  # the first warms up
                found.append(took)
    trainer.prefetcher.close()
    trainer.checkpoints.close()
    newest = max((FOLDER / "stall/checkpoints").iterdir(), key=lambda path: path.name.startswith("step"))
    size = sum(file.stat().st_size for file in newest.iterdir()) / 2**20
    base = statistics.median(times["none"])
    return [
        {
            "checkpoint every 50 steps": name,
            "size, MiB": round(size) if name != "none" else 0,
            "step, ms": round(1e3 * statistics.median(found), 1),
            "of none": round(statistics.median(found) / base, 3),
        }
        for name, found in times.items()
    ]


def company() -> list[dict[str, str | float]]:
    """Processes on a core each, with the same share of prompts: one, two strangers, two of one run."""
    cases = {"one": (1, False), "two strangers": (2, False), "two of one run": (2, True)}
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(TURNS):
        for name, (size, speaking) in cases.items():
            found[name].append(_step_seconds(name.replace(" ", "-"), size, speaking))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return [
        {
            "processes": name,
            "prompts a step": 8 if cases[name][1] else 4,
            "step, ms": round(1e3 * took, 1),
            "of them, least and most": f"{1e3 * min(found[name]):.0f} to {1e3 * max(found[name]):.0f}",
            "efficiency": round(medians["one"] / took, 3),
        }
        for name, took in medians.items()
    ]


def _step_seconds(name: str, size: int, speaking: bool) -> float:
    """Median over steps of the slowest of `size` processes that run at once."""
    started, folders = [], []
    for rank in range(size):
        folder = FOLDER / (name if speaking else f"{name}-{rank}")
        if folder not in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folders.append(folder)
        command = [sys.executable, "train.py", "configs/quickstart.yaml", f"output={folder}"]
        command += [f"trainer.steps={STEPS}", "trainer.prompts_per_process=4"]
        command += ["monitoring.preview_every=1000"]
        own = {"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)} if speaking else {}
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611", "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                ["taskset", "-c", str(rank), *command],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **shared, **own},
            )
        )
    assert all(process.wait() == 0 for process in started), "a process failed: run its command by hand"
    return max(_median_step(folder) for folder in folders)


def _median_step(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return statistics.median(
        sum(value for name, value in line.items() if name.startswith("time/")) for line in lines[SKIPPED:]
    )


def main() -> None:
    machine = timing.machine(torch.device("cpu"))
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    for measure in (company, stall):
        print(f"\n{timing.markdown(measure())}", flush=True)


if __name__ == "__main__":
    main()
