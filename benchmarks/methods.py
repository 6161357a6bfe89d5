"""Guidance methods compared at equal denoiser calls: the same run, several seeds of each.

  python -m benchmarks.methods [CONFIG] [--methods asd sds] [--seeds 0 1 2] [--processes 2] [KEY=VALUE ...]

Every run is an ordinary `train.py` and `evaluate.py` under outputs/methods, with the preset's prompts
shared among the processes; what is done already is not done again. Prints a Markdown table: means over
prompts and seeds, with 95 % bootstrap intervals over prompts (each prompt averaged over seeds first),
and each seed's recall.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from amortized import config as settings
from amortized.evaluation.metrics import bootstrap_interval
from amortized.guidance import calls_per_image
from train import RunConfig

# Overrides of the preset, which has ASD's times and scale for the embedded prior: what each other method
# needs there. Published schedules are meant for another prior, see docs/guidance.md.
METHODS: dict[str, list[str]] = {
    "asd": ["guidance.method=asd"],
    "asd-no-shift": ["guidance.method=asd", "guidance.shift_eta=0"],
    "sds": ["guidance.method=sds"],
    "csd": ["guidance.method=csd"],
    "vsd": ["guidance.method=vsd"],
    "ism": ["guidance.method=ism"],
    "lods-embedding": ["guidance.method=lods-embedding"],
    "lods-lora": ["guidance.method=lods-lora"],
    "sdi": ["guidance.method=sdi"],
    "dsd": ["guidance.method=dsd"],
}
COLUMNS = ("recall_at_1", "iou", "iou_any_azimuth", "colour_error", "clip_similarity")


def calls_of(config: Path, method: str, overrides: list[str]) -> float:
    """Denoiser images a step for one image, as the method is run here."""
    run_config = settings.load(RunConfig, config, [*overrides, *METHODS[method]])
    return calls_per_image(run_config.guidance, run_config.views.num_negatives)


def folder_of(config: Path, method: str, seed: int, overrides: list[str]) -> Path:
    """Where a run goes: other overrides, another folder."""
    tag = f"-{hashlib.sha256(repr(sorted(overrides)).encode()).hexdigest()[:6]}" if overrides else ""
    return Path("outputs/methods") / f"{config.stem}{tag}-{method}-{seed}"


def run(
    config: Path, method: str, seed: int, calls: float, overrides: list[str], processes: int, prompts: int
) -> list[dict]:
    """Rows of one run's prompts, training and evaluating it first where that is still to be done."""
    folder = folder_of(config, method, seed, overrides)
    results = folder / "evaluation" / "results.json"
    if not results.exists():
        train = [
            *("train.py", str(config), *overrides, *METHODS[method], f"output={folder}", f"seed={seed}"),
            f"trainer.steps={round(calls / calls_of(config, method, overrides))}",
            f"trainer.prompts_per_process={prompts}",
        ]
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        alone = [sys.executable]
        shared = [*alone, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launch = alone if processes == 1 else shared
        subprocess.run([*launch, *train, *resume], check=True)
        subprocess.run([*launch, "evaluate.py", str(folder)], check=True)
    return json.loads(results.read_text())["prompts"]


def table(found: dict[str, list[list[dict]]]) -> str:
    """A Markdown line a method, from each seed's rows."""
    lines = [
        f"| method | {' | '.join(COLUMNS)} | recall_at_1 of each seed |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for method, seeds in found.items():
        cells = []
        for column in COLUMNS:
            per_prompt = [mean(row[column] for row in rows) for rows in zip(*seeds, strict=True)]
            interval = bootstrap_interval(per_prompt, seed=0)
            cells.append(f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
        each = ", ".join(f"{mean(row['recall_at_1'] for row in rows):.3f}" for rows in seeds)
        lines.append(f"| {method} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1, help="for each run, on this machine")
    given = parser.parse_intermixed_args()
    trainer = settings.load(RunConfig, given.config, given.overrides).trainer
    # The budget is what the preset's own steps cost ASD.
    calls = trainer.steps * calls_of(given.config, "asd", given.overrides)
    prompts, rest = divmod(trainer.prompts_per_process, given.processes)
    if rest:
        parser.error(f"{given.processes} processes cannot share {trainer.prompts_per_process} prompts evenly")
    found: dict[str, list[list[dict]]] = {method: [] for method in given.methods}
    for seed in given.seeds:
        for method in given.methods:
            rows = run(given.config, method, seed, calls, given.overrides, given.processes, prompts)
            found[method].append(rows)
    print(table(found))


if __name__ == "__main__":
    main()
