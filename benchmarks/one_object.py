"""Single objects by method and representation; the source of the tables in `docs/one-object.md`.

  python -m benchmarks.one_object [SECTION ...] [--seeds 0 1 2] [--workers 2] [--output outputs/one-object]

sdf, density, splats  five methods at equal denoiser calls, three prompts, a run for each (an hour each)

The runs are ordinary training runs under OUTPUT/runs; finished ones are reused. Prints tables and writes them
to OUTPUT as JSON, with plots as PNG.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml

from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.config.presets import flatten
from amortized.files import atomic_write_text
from benchmarks import plots, timing
from benchmarks.studies import ROOT, Study, Variant, run_study, table

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
    changes = [f"guidance.{key}={json.dumps(value)}" for key, value in guidance.items()]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.one_object",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=list(STUDIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="concurrent runs")
    parser.add_argument("--output", type=Path, default=Path("outputs/one-object"))
    args = parser.parse_intermixed_args()
    if wrong := set(args.sections) - set(STUDIES):
        parser.error(f"unknown section {', '.join(sorted(wrong))}; choose from {', '.join(STUDIES)}")
    machine = timing.machine(torch.device("cpu"))
    for section in args.sections:
        study = STUDIES[section]
        results = run_study(
            study, variants=study.variants, seeds=args.seeds, folder=args.output, workers=args.workers
        )
        rows = table(study, results)
        text = json.dumps({"machine": machine, "seeds": args.seeds, "rows": rows}, indent=2, default=vars)
        atomic_write_text(args.output / f"{section}.json", text + "\n")
        plots.intervals(rows, args.output / f"{section}.png", study.title)
        print(f"\n## {study.title}\n\n{timing.markdown(rows)}", flush=True)


if __name__ == "__main__":
    main()
