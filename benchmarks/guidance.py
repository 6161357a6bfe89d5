"""Every method against every measure: what `docs/guidance.md` tells.

  python -m benchmarks.guidance [SECTION ...] [--seeds 0 1 2] [--workers 2] [--output outputs/guidance]

mixture     a prior known exactly: bias, noise of the gradient, coverage of modes (minutes)
directions  cosine of each method's gradient with the true residual, by timestep (minutes)
corpus      the 16 prompts of the quickstart at equal denoiser calls (hours)
single      two prompts, each alone (an hour)
four-views  the same 16 prompts from the multi-view prior
shift       ASD's shift, and none
nulls       learned nulls of LODS against the plain one
fronts      Janus faces: one view, one view with words for its direction, four views with cameras
diversity   different outcomes of prompts that leave a word open

Runs are ordinary ones under OUTPUT/runs; what is done already is not done again. Prints tables, and writes
them with their plots to OUTPUT as JSON and PNG.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from amortized.checkpointing import list_checkpoints
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.files import atomic_write_text
from amortized.guidance import METHODS
from benchmarks import directions, diversity, mixture, plots, timing
from benchmarks.studies import ROOT, Study, Variant, jobs_of, run_study, table

EXACT = ("recall_at_1", "iou", "color_error", "clip_similarity")
# ASD's, which the others are compared with, is the quickstart's own; the others have what suits each, at as
# many denoiser calls.
PRESETS = {"asd": Variant(preset="quickstart")} | {
    method: Variant(preset=f"methods/{method}") for method in METHODS if method != "asd"
}


def alone(preset: Variant) -> Variant:
    """One object alone, in half the steps: all images are its own."""
    steps = load_config(RunConfig, preset.path).trainer.steps // 2
    images = ("trainer.prompts_per_process=1", "trainer.views_per_prompt=4", f"trainer.steps={steps}")
    return replace(preset, changes=images)


WORDLESS = ("views.direction_step_deg=0", "views.suffixes=['', '', '', '']")
# As configs/shapes16-multi-view.yaml has it: as many images a step.
FOUR_VIEWS = (
    "prior.path=checkpoints/shapes-multi-view",
    "prior.num_views=4",
    "cameras.ring=true",
    *WORDLESS,
    "trainer.prompts_per_process=4",
    "trainer.views_per_prompt=4",
)
STUDIES = {
    "corpus": Study(
        title="Methods over a corpus, at equal denoiser calls",
        variants=PRESETS,
        columns=EXACT,
    ),
    "single": Study(
        title="Methods on one object alone, at equal denoiser calls",
        variants={name: alone(preset) for name, preset in PRESETS.items()},
        columns=EXACT,
        alone=("a green torus", "a blue cone"),
    ),
    "four-views": Study(
        title="Methods over a corpus from the multi-view prior, at equal denoiser calls",
        variants={name: replace(preset, changes=FOUR_VIEWS) for name, preset in PRESETS.items()},
        columns=EXACT,
    ),
    "shift": Study(
        title="ASD's shift",
        variants={
            "t' = t + 2 (t - t_min)": PRESETS["asd"],
            "published: up to 0.1 (t - t_min)": Variant(
                preset="quickstart", changes=("guidance.shift_eta=0.1", "guidance.shift_random=true")
            ),
            "none": Variant(preset="quickstart", changes=("guidance.shift_eta=0",)),
        },
        columns=EXACT,
    ),
    "nulls": Study(
        title="LODS with nulls of three kinds, and the plain one",
        variants={
            # Nothing learns, so that there are calls for half as many steps more.
            "plain": Variant(
                preset="methods/lods-embedding",
                changes=(
                    "guidance.null=prior",
                    "guidance.learned=null",
                    "trainer.steps=900",
                ),
            ),
            **{
                kind: Variant(preset="methods/lods-embedding", changes=(f"guidance.learned.kind={kind}",))
                for kind in ("null", "prompt-nulls", "adapter")
            },
        },
        columns=EXACT,
    ),
    "fronts": Study(
        title="Janus faces",
        variants={
            "one view": Variant(preset="methods/fronts", changes=WORDLESS),
            "one view, directions in words": Variant(preset="methods/fronts"),
            "four views": Variant(preset="methods/fronts-multi-view"),
        },
        columns=("janus", "front_shown", "recall_at_1", "iou"),
    ),
    "diversity": Study(
        title="Prompts that leave a word open",
        variants={"asd": Variant(preset="methods/open-asd"), "dsd": Variant(preset="methods/open-dsd")},
        columns=("clip_similarity",),
    ),
}
# What of DSD makes assets differ: its reference, or its noise; and of that, the trajectory or the seed?
PARTS_OF_DSD = {
    "dsd, the noise as reference": Variant(
        preset="methods/open-dsd", changes=("guidance.reference=noise", "trainer.steps=291")
    ),
    "dsd, a trajectory of one step": Variant(
        preset="methods/open-dsd", changes=("guidance.trajectory.num_steps=1", "trainer.steps=296")
    ),
}
SECTIONS = ("mixture", "directions", *STUDIES)


def rows_of(section: str, seeds: Sequence[int], folder: Path, workers: int) -> list[dict]:
    """A section's table."""
    if section == "mixture":
        return [{"seed": seed, **row} for seed in seeds for row in mixture.measure(seed)]
    if section == "directions":
        return pointing(seeds, folder)
    study = STUDIES[section]
    found = run_study(study, variants=study.variants, seeds=seeds, folder=folder, workers=workers)
    if section == "diversity":
        runs = {name: jobs_of(study, name, seeds, folder) for name in study.variants}
        configs = {
            name: [load_config(RunConfig, v.path, [*v.changes, f"seed={seed}"]) for seed in seeds]
            for name, v in {**study.variants, **PARTS_OF_DSD}.items()
        }
        return diversity.measure(
            {name: [job.folder for [job] in of_name] for name, of_name in runs.items()}, configs
        )
    return table(study, found)


def pointing(seeds: Sequence[int], folder: Path) -> list[dict]:
    """Directions under both embedded priors, from a ball and, if the corpus run exists, from its scenes."""
    [trained] = jobs_of(STUDIES["corpus"], "asd", seeds[:1], folder)[0]
    run = trained.folder if list_checkpoints(trained.folder / "checkpoints") else None
    one, four = (
        load_config(RunConfig, ROOT / f"configs/{name}.yaml")
        for name in ("quickstart", "shapes16-multi-view")
    )
    rows = directions.measure(one, list(METHODS), [1.5, 7.5], run)
    rows += [
        {**row, "state": f"{row['state']}, four views"}
        for row in directions.measure(four, list(METHODS), [1.5, 7.5], None)
    ]
    return [{**row, "state": "trained"} if run and row["state"] == run.name else row for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guidance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=list(SECTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("outputs/guidance"))
    given = parser.parse_intermixed_args()
    if wrong := set(given.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(wrong))}; there are {', '.join(SECTIONS)}")
    machine = timing.machine(torch.device("cpu"))
    for section in given.sections:
        rows = rows_of(section, given.seeds, given.output, given.workers)
        found = {"machine": machine, "seeds": given.seeds, "rows": rows}
        text = json.dumps(found, indent=2, default=vars)
        atomic_write_text(given.output / f"{section}.json", text + "\n")
        title = STUDIES[section].title if section in STUDIES else section.capitalize()
        if section == "directions":
            plots.lines(rows, directions.TIMES, given.output / "directions.png", title)
        elif section in STUDIES:
            plots.intervals(rows, given.output / f"{section}.png", title)
        print(f"\n## {title}\n\n{timing.markdown(rows)}", flush=True)


if __name__ == "__main__":
    main()
