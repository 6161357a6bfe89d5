"""Compare objects that start from a trained generator with those that start cold.

Both kinds take the same steps of the same guidance with the same seeds, and are evaluated on the way. The
steps saved are those before which the warm run reaches the cold run's score at its end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from amortized.evaluation.metrics import bootstrap_interval
from benchmarks.studies import ROOT, Job, Launch, digest, evaluate, launcher, train

# Of shapes-comp, whose run is the source. The third sentence is not in that corpus, not even held out.
PROMPTS = {
    "seen": "a purple capsule next to a green cylinder",
    "held out": "a red torus on top of a blue capsule",
    "unseen": "a cyan cone on top of a red cube",
}
STEPS = (25, 50, 100, 200, 300)
# The heads of the source, so that the object is an exact copy of the source's.
PRESETS = {
    "sdf": ("tiny-ingp", ("generator.hidden=[64]", "generator.shared_width=64")),
    "splats": ("tiny-splats", ("generator.count=2000",)),
}
# The score whose steps are compared. Splats that start on a surface are a shell, which IoU counts as empty.
SCORE = {"sdf": "iou", "splats": "clip_similarity"}
# A cold SDF begins with a blurred surface, which a finished object does not need.
WARM = {"sdf": ("trainer.sharpness=200",), "splats": ()}
EVERY = ("checkpointing.every=25", "checkpointing.keep=100", "monitoring.preview_scores=false")
QUICK = ("evaluation.grid=32", "evaluation.views=4")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Scores by step of a warm and a cold run that differ in their start only."""

    warm: list[Mapping[str, float]]  # in the order of STEPS
    cold: list[Mapping[str, float]]


def measure(source: Path, seeds: Sequence[int], folder: Path, workers: int) -> list[dict[str, object]]:
    """Return a row per representation and kind of prompt: scores of both, differences, and steps saved."""
    jobs = {
        (name, kind, seed, start): job_of(name, prompt, seed, start, source, folder)
        for seed in seeds
        for name in PRESETS
        for kind, prompt in PROMPTS.items()
        for start in ("warm", "cold")
    }
    with launcher(workers) as launch, ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda job: scores_of(job, launch), jobs.values()))
    scores = dict(zip(jobs, found, strict=True))
    rows = []
    for name in PRESETS:
        for kind in PROMPTS:
            pairs = [
                Pair(warm=scores[name, kind, seed, "warm"], cold=scores[name, kind, seed, "cold"])
                for seed in seeds
            ]
            rows.append({"variant": f"{name}, {kind}", **compared(pairs, SCORE[name])})
    return rows


def job_of(name: str, prompt: str, seed: int, start: str, source: Path, folder: Path) -> Job:
    """Return the run of one representation, prompt, seed and start."""
    preset, changes = PRESETS[name]
    output = folder / "runs" / f"{name}-{start}-{digest(prompt)}-seed{seed}"
    arguments = (str(ROOT / f"configs/{preset}.yaml"), *changes, *EVERY, "corpus=shapes-comp")
    arguments += (f"prompt={prompt}", f"seed={seed}", f"output={output}")
    return Job(
        folder=output,
        arguments=(*arguments, f"start={source}", *WARM[name]) if start == "warm" else arguments,
    )


def scores_of(job: Job, launch: Launch) -> list[Mapping[str, float]]:
    """Return the scores at each of STEPS; trains and evaluates what is missing."""
    if not (job.folder / "checkpoints" / f"step_{STEPS[-1]:06d}").exists():
        train(job, launch)
    rows = []
    for step in STEPS:
        checkpoint, output = f"step_{step:06d}", job.folder / f"evaluation-{step}"
        if not (output / "results.json").exists():
            options = ("--checkpoint", checkpoint, "--output", str(output))
            evaluate(launch, str(job.folder), *options, *QUICK)
        rows.append(json.loads((output / "results.json").read_text(encoding="utf-8"))["prompts"][0])
    return rows


def compared(pairs: Sequence[Pair], column: str) -> dict[str, object]:
    """Return a score of both by step, its paired differences, that of R@1 at the end, and the steps saved."""
    row: dict[str, object] = {"score": column}
    for index, step in enumerate(STEPS):
        warm, cold = ([getattr(pair, start)[index][column] for pair in pairs] for start in ("warm", "cold"))
        row[f"{step}, warm"] = bootstrap_interval(warm, seed=0)
        row[f"{step}, cold"] = bootstrap_interval(cold, seed=0)
        row[f"{step}, warm - cold"] = bootstrap_interval(
            [a - b for a, b in zip(warm, cold, strict=True)], seed=0
        )
    recalls = [pair.warm[-1]["recall_at_1"] - pair.cold[-1]["recall_at_1"] for pair in pairs]
    row["R@1 at the end, warm - cold"] = bootstrap_interval(recalls, seed=0)
    row["steps saved"] = bootstrap_interval([steps_saved(pair, column) for pair in pairs], seed=0)
    return row


def steps_saved(pair: Pair, column: str) -> float:
    """Return how many steps before its end the warm run reaches the cold run's score at its end.

    Between evaluations scores are linear. A warm run that never reaches it saves none.
    """
    goal = pair.cold[-1][column]
    points = [(step, row[column]) for step, row in zip(STEPS, pair.warm, strict=True)]
    if points[0][1] >= goal:
        return float(STEPS[-1] - STEPS[0])
    for (before, low), (after, high) in pairwise(points):
        if high >= goal:
            return STEPS[-1] - (before + (after - before) * (goal - low) / (high - low))
    return 0.0
