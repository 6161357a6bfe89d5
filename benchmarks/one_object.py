"""Single objects by method and representation; the source of the tables in `docs/one-object.md`.

  python -m benchmarks.one_object [SECTION ...] [--seeds 0 1 2] [--workers 2] [--output outputs/one-object]

sdf, density, splats  five methods at equal denoiser calls, three prompts, a run for each (half an hour each)
warm                  runs that start from a trained generator's object, and the same runs from a ball
diversity             different outcomes of prompts that leave a word open, by DSD: a run for each of 16 seeds

The runs are ordinary training runs under OUTPUT/runs; finished ones are reused. Prints tables and writes them
to OUTPUT as JSON, with plots as PNG.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml
from torch import Tensor

from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.config.presets import flatten
from amortized.evaluation import load_clip
from amortized.files import atomic_write_text
from benchmarks import diversity, plots, timing, warm_start
from benchmarks.studies import ROOT, Job, Study, Variant, digest, launcher, run_study, table, train

COLUMNS = ("recall_at_1", "iou", "color_error", "seconds")
PROMPTS = ("a green torus", "a blue cone", "a yellow cylinder")
REPRESENTATIONS = {
    "sdf": ("tiny-ingp", "Instant-NGP with an SDF"),
    "density": ("tiny-ingp-density", "Instant-NGP with a density"),
    "splats": ("tiny-splats", "Gaussian splats"),
}
METHODS = ("asd", "lods-embedding", "ism", "dsd", "sdi")


def settings_of(method: str) -> tuple[str, ...]:
    """Return the changes that make a preset of one object use a method: its guidance, and half its steps.

    The quickstart's steps have 16 images, these have 4; half the steps suffice for one object.
    """
    if method == "asd":
        return ()
    path = ROOT / f"configs/methods/{method}.yaml"
    guidance = flatten(yaml.safe_load(path.read_text(encoding="utf-8"))["guidance"])
    changes = [
        f"guidance.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in guidance.items()
    ]
    return (*changes, f"trainer.steps={load_config(RunConfig, path).trainer.steps // 2}")


STUDIES = {
    name: Study(
        title=f"{title}: methods at equal denoiser calls",
        variants={method: Variant(preset=preset, changes=settings_of(method)) for method in METHODS},
        columns=COLUMNS,
        separate_prompts=PROMPTS,
    )
    for name, (preset, title) in REPRESENTATIONS.items()
}


SECTIONS = (*STUDIES, "warm", "diversity")
OPEN = ("a cube", "something red")
WARM = "Warm and cold starts at equal steps, by ASD"
DIVERSITY = "Prompts that leave a word open: 16 single objects by DSD"


def diversity_rows(seeds: Sequence[int], folder: Path, workers: int) -> list[dict]:
    """Return a row per representation: different right outcomes of 16 runs of a prompt, and the sampler's."""
    makers: dict[str, list[dict[str, Tensor]]] = {}
    configs = [load_config(RunConfig, ROOT / "configs/methods/open-dsd.yaml", [f"seed={s}"]) for s in seeds]
    for name in ("sdf", "splats"):
        variant = STUDIES[name].variants["dsd"]
        makers[name] = [assets_of(variant, seed, folder / "runs", workers) for seed in seeds]
    makers["the prior's sampler"] = [diversity.samples_of(config, diversity.ASSETS) for config in configs]
    return diversity.rows_of(makers, load_clip(configs[0].evaluation.clip))


def assets_of(variant: Variant, seed: int, folder: Path, workers: int) -> dict[str, Tensor]:
    """Return images [16, H, W, 3] of each prompt of OPEN, each of a separate run with another seed."""
    jobs = {
        (prompt, number): Job(
            folder=(run := folder / f"{variant.slug}-{digest(prompt)}-{16 * seed + number}"),
            arguments=(
                *(str(variant.path), *variant.changes, f"prompt={prompt}", f"seed={16 * seed + number}"),
                *(f"output={run}", "monitoring.preview_scores=false", "monitoring.preview_every=1000"),
            ),
        )
        for prompt in OPEN
        for number in range(diversity.ASSETS)
    }
    missing = [job for job in jobs.values() if not (job.folder / "checkpoints").exists()]
    with launcher(workers) as launch, ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: train(job, launch), missing))
    images = {key: diversity.image_of(job.folder, key[1], diversity.ASSETS) for key, job in jobs.items()}
    return {
        prompt: torch.stack([images[prompt, number] for number in range(diversity.ASSETS)]) for prompt in OPEN
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.one_object",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=list(SECTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="concurrent runs")
    parser.add_argument(
        "--source",
        type=Path,
        default=Path("outputs/shapes-comp"),
        help="run of configs/shapes-comp.yaml from which warm runs start (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/one-object"))
    args = parser.parse_intermixed_args()
    if wrong := set(args.sections) - {*SECTIONS}:
        parser.error(f"unknown section {', '.join(sorted(wrong))}; choose from {', '.join(SECTIONS)}")
    machine = timing.machine(torch.device("cpu"))
    for section in args.sections:
        if section == "warm":
            title = WARM
            rows = warm_start.measure(args.source, args.seeds, args.output, args.workers)
        elif section == "diversity":
            title, rows = DIVERSITY, diversity_rows(args.seeds, args.output, args.workers)
        else:
            study = STUDIES[section]
            title = study.title
            options = {"seeds": args.seeds, "folder": args.output, "workers": args.workers}
            rows = table(study, run_study(study, variants=study.variants, **options))
        text = json.dumps({"machine": machine, "seeds": args.seeds, "rows": rows}, indent=2, default=vars)
        atomic_write_text(args.output / f"{section}.json", text + "\n")
        plots.intervals(rows, args.output / f"{section}.png", title)
        print(f"\n## {title}\n\n{timing.markdown(rows)}", flush=True)


if __name__ == "__main__":
    main()
