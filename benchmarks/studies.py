"""Train, evaluate and compare variants of a run, with several seeds each, paired by prompt."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch

from amortized.checkpointing import list_checkpoints
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.evaluation.metrics import Interval, bootstrap_interval

ROOT = Path(__file__).resolve().parents[1]
STOPPED = 1  # exit status of a training that stopped
Rows = list[dict]
# Runs "train" or "evaluate" with arguments; returns the exit status and what it printed to stderr.
Launch = Callable[[str, Sequence[str]], tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A training run: a preset and its changes."""

    preset: str  # under configs/, without .yaml
    changes: tuple[str, ...] = ()  # KEY=VALUE

    @property
    def path(self) -> Path:
        return ROOT / "configs" / f"{self.preset}.yaml"

    @property
    def slug(self) -> str:
        """Return a folder name that depends on preset and changes only, so that studies share equal runs."""
        name = Path(self.preset).name
        return f"{name}-{digest(*self.changes)}" if self.changes else name


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants by name; the first is the baseline, compared with the others prompt by prompt."""

    title: str
    variants: Mapping[str, Variant]
    columns: tuple[str, ...]
    separate_prompts: tuple[str, ...] = ()  # a run for each of these prompts, instead of one for the corpus


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study."""

    folder: Path
    arguments: tuple[str, ...]  # for train.py: preset, KEY=VALUE ...


def digest(*texts: str) -> str:
    """Return a short hash of texts, for file names."""
    return sha256(json.dumps(texts).encode()).hexdigest()[:8]


def jobs_of(study: Study, variant: str, seeds: Sequence[int], folder: Path) -> list[list[Job]]:
    """Return, for each seed, the runs that together cover the variant's prompts."""
    chosen = study.variants[variant]
    jobs = []
    for seed in seeds:
        common = (str(chosen.path), *chosen.changes, f"seed={seed}")
        runs = []
        for prompt in study.separate_prompts or ("",):
            output = folder / "runs" / f"{chosen.slug}-seed{seed}" / (digest(prompt) if prompt else "")
            prompt_override = (f"prompt={prompt}",) if prompt else ()
            runs.append(Job(folder=output, arguments=(*common, *prompt_override, f"output={output}")))
        jobs.append(runs)
    return jobs


def run(job: Job, launch: Launch) -> Rows:
    """Return the result rows of a run; train and evaluate it first if necessary.

    Raises RuntimeError if a command fails.
    """
    results = job.folder / "evaluation" / "results.json"
    check_settings(job)
    if not results.exists():
        train(job, launch)
        evaluate(launch, str(job.folder))
    rows = json.loads(results.read_text(encoding="utf-8"))["prompts"]
    return [{**row, **seconds_of(job.folder)} for row in rows]


def train(job: Job, launch: Launch) -> None:
    """Train a run, or resume it. One that collapsed after a checkpoint counts as trained.

    Raises RuntimeError if it fails.
    """
    if (job.folder / "stopped").exists():
        return  # it would stop for the same reason again
    status, error = launch("train", job.arguments)
    if status and not (status == STOPPED and list_checkpoints(job.folder / "checkpoints")):
        raise RuntimeError(f"train.py {' '.join(job.arguments)} failed:\n{error[-2000:]}")


def evaluate(launch: Launch, *arguments: str) -> None:
    """Evaluate a run, without videos and files in 3D. Raises RuntimeError if it fails."""
    status, error = launch("evaluate", (*arguments, "evaluation.turntable_frames=0", "evaluation.objects=0"))
    if status:
        raise RuntimeError(f"evaluate.py {' '.join(arguments)} failed:\n{error[-2000:]}")


@contextmanager
def launcher(workers: int) -> Iterator[Launch]:
    """Context: a function that runs a script in one of `workers` processes, which share the cores.

    They import the project once, which takes longer than some runs.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        yield lambda script, arguments: pool.submit(run_script, script, tuple(arguments)).result()


def run_script(name: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Run train.py or evaluate.py here; returns its exit status and what it printed to stderr."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    printed = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(printed):
        try:
            status = importlib.import_module(name).main(list(arguments))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return status, printed.getvalue()


def seconds_of(run: Path) -> dict[str, float]:
    """Return the seconds of all steps of a run, without its start, checkpoints and previews."""
    log = run / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    steps = [value for line in lines for key, value in json.loads(line).items() if key.startswith("time/")]
    return {"seconds": sum(steps)} if steps else {}


def check_settings(job: Job) -> None:
    """Raise ValueError if the folder holds a run with other settings: the preset has changed since."""
    config_file = job.folder / "config.yaml"
    preset, *changes = job.arguments
    if config_file.exists() and load_config(RunConfig, config_file) != load_config(
        RunConfig, Path(preset), changes
    ):
        raise ValueError(
            f"{job.folder} holds a run whose settings differ from {Path(preset).name}'s current ones: "
            "remove it, or choose another --output"
        )


def run_study(
    study: Study, *, variants: Iterable[str], seeds: Sequence[int], folder: Path, workers: int
) -> dict[str, list[Rows]]:
    """Return the rows of each variant and seed; `workers` concurrent runs share the cores."""
    jobs = {variant: jobs_of(study, variant, seeds, folder) for variant in variants}
    # Seed by seed, so that an interrupted study has all variants of the first ones.
    order = [job for index in range(len(seeds)) for runs in jobs.values() for job in runs[index]]
    with launcher(workers) as launch, ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(lambda job: run(job, launch), order))
    by_folder = {job.folder: job_rows for job, job_rows in zip(order, rows, strict=True)}
    return {
        variant: [[row for job in runs for row in by_folder[job.folder]] for runs in runs_by_seed]
        for variant, runs_by_seed in jobs.items()
    }


def table(study: Study, results: Mapping[str, list[Rows]]) -> list[dict[str, object]]:
    """Return a row per variant: means with 95 % intervals, and differences to the first variant.

    Intervals sample over prompts, each averaged over seeds first, so they cover other prompts of the same
    kind; the first column's mean of each seed shows how much runs differ. If each prompt is trained
    separately, every run is a sample, and intervals cover other runs of the same few prompts.
    """
    samples = per_run if study.separate_prompts else per_prompt
    first = next(iter(results))
    rows = []
    for variant, seeds in results.items():
        row: dict[str, object] = {"variant": variant}
        for column in study.columns:
            baseline = None if variant == first else samples(results[first], column)
            row |= compared(column, samples(seeds, column), baseline, first)
        row["each seed"] = [mean(row[study.columns[0]] for row in rows) for rows in seeds]
        rows.append(row)
    return rows


def compared(
    column: str, values: list[float], baseline: list[float] | None, name: str
) -> dict[str, Interval]:
    """Return a column's mean and its paired difference to the baseline `name`, with bootstrap intervals."""
    cells = {column: bootstrap_interval(values, seed=0)}
    if baseline is not None:
        differences = [a - b for a, b in zip(values, baseline, strict=True)]
        cells[f"{column} - {name}"] = bootstrap_interval(differences, seed=0)
    return cells


def per_prompt(seeds: Sequence[Rows], column: str) -> list[float]:
    """Return each prompt's mean over seeds."""
    return [mean(row[column] for row in rows) for rows in zip(*seeds, strict=True)]


def per_run(seeds: Sequence[Rows], column: str) -> list[float]:
    """Return each prompt's value in each seed's run."""
    return [row[column] for rows in seeds for row in rows]
