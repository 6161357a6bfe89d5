"""Whole runs compared: several seeds of each variant, paired by prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean

from amortized.checkpointing import list_checkpoints
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.evaluation.metrics import Interval, bootstrap_interval

ROOT = Path(__file__).resolve().parents[1]
STOPPED = 1  # exit status of a training that stopped
Rows = list[dict]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An ordinary training run: a preset, and what is changed."""

    preset: str  # under configs/, without .yaml
    changes: tuple[str, ...] = ()  # KEY=VALUE

    @property
    def path(self) -> Path:
        return ROOT / "configs" / f"{self.preset}.yaml"

    @property
    def slug(self) -> str:
        """A folder's name, the same for the same run, so that studies share what they have in common."""
        name = Path(self.preset).name
        return f"{name}-{digest(*self.changes)}" if self.changes else name


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants by name; the first is what the others are compared with, prompt by prompt."""

    title: str
    variants: Mapping[str, Variant]
    columns: tuple[str, ...]
    alone: tuple[str, ...] = ()  # train a run for each of these prompts, instead of one for the corpus


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study."""

    folder: Path
    arguments: tuple[str, ...]  # of train.py


def digest(*texts: str) -> str:
    """A few letters that tell such texts apart and may be in a file's name."""
    return sha256(json.dumps(texts).encode()).hexdigest()[:8]


def jobs_of(study: Study, variant: str, seeds: Sequence[int], folder: Path) -> list[list[Job]]:
    """For each seed, the runs whose prompts together are the variant's rows."""
    chosen = study.variants[variant]
    jobs = []
    for seed in seeds:
        common = (str(chosen.path), *chosen.changes, f"seed={seed}")
        runs = []
        for prompt in study.alone or ("",):
            output = folder / "runs" / f"{chosen.slug}-seed{seed}" / (digest(prompt) if prompt else "")
            told = (f"prompt={prompt}",) if prompt else ()
            runs.append(Job(folder=output, arguments=(*common, *told, f"output={output}")))
        jobs.append(runs)
    return jobs


def run(job: Job, threads: int) -> Rows:
    """The result rows of a run, which is trained and evaluated first if necessary."""
    results, checkpoints = job.folder / "evaluation" / "results.json", job.folder / "checkpoints"
    check_settings(job)
    if not results.exists():
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        for script, arguments in (
            ("train.py", job.arguments),
            ("evaluate.py", [str(job.folder), "evaluation.turntable_frames=0"]),
        ):
            if script == "train.py" and (job.folder / "stopped").exists():
                continue  # it would only stop there again
            command = [sys.executable, str(ROOT / script), *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            # A run that collapsed keeps its last good checkpoint, and is judged by it.
            stopped = done.returncode == STOPPED and script == "train.py" and list_checkpoints(checkpoints)
            if done.returncode and not stopped:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(results.read_text())["prompts"]


def check_settings(job: Job) -> None:
    """Raise ValueError if the folder holds a run with other settings: its preset has changed."""
    kept = job.folder / "config.yaml"
    preset, *changes = job.arguments
    if kept.exists() and load_config(RunConfig, kept) != load_config(RunConfig, Path(preset), changes):
        raise ValueError(
            f"{job.folder} holds a run of other settings than {Path(preset).name} has now: "
            "remove it, or choose another --output"
        )


def run_study(
    study: Study, *, variants: Iterable[str], seeds: Sequence[int], folder: Path, workers: int
) -> dict[str, list[Rows]]:
    """Rows of each variant and seed; `workers` runs at a time share the cores."""
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    jobs = {variant: jobs_of(study, variant, seeds, folder) for variant in variants}
    # Seed by seed, so that an interrupted study has all variants of the first ones.
    order = [job for index in range(len(seeds)) for runs in jobs.values() for job in runs[index]]
    with ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(lambda job: run(job, threads), order))
    found = {job.folder: of_job for job, of_job in zip(order, rows, strict=True)}
    return {
        variant: [[row for job in runs for row in found[job.folder]] for runs in of_seeds]
        for variant, of_seeds in jobs.items()
    }


def table(study: Study, found: Mapping[str, list[Rows]]) -> list[dict[str, object]]:
    """A row a variant: means over prompts and seeds with 95 % intervals, and differences to the first.

    Intervals are over prompts, each averaged over seeds first: they speak of other prompts of the kind,
    and the first column's mean for each seed tells how much runs differ. Where prompts are trained alone,
    every run is a sample: intervals speak of other runs of the same few prompts.
    """
    measured = per_run if study.alone else per_prompt
    first = next(iter(found))
    rows = []
    for variant, seeds in found.items():
        row: dict[str, object] = {"variant": variant}
        for column in study.columns:
            baseline = None if variant == first else measured(found[first], column)
            row |= compared(column, measured(seeds, column), baseline, first)
        row["each seed"] = [mean(row[study.columns[0]] for row in rows) for rows in seeds]
        rows.append(row)
    return rows


def compared(
    column: str, values: list[float], baseline: list[float] | None, name: str
) -> dict[str, Interval]:
    """A column's mean, and its difference to the baseline's of that name, sample by sample."""
    cells = {column: bootstrap_interval(values, seed=0)}
    if baseline is not None:
        differences = [a - b for a, b in zip(values, baseline, strict=True)]
        cells[f"{column} - {name}"] = bootstrap_interval(differences, seed=0)
    return cells


def per_prompt(seeds: Sequence[Rows], column: str) -> list[float]:
    """Each prompt's mean over seeds."""
    return [mean(row[column] for row in rows) for rows in zip(*seeds, strict=True)]


def per_run(seeds: Sequence[Rows], column: str) -> list[float]:
    """Each prompt's value in each seed's run."""
    return [row[column] for rows in seeds for row in rows]
