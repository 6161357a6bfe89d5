"""Compare all guidance methods; the source of the tables in `docs/guidance.md`.

  python -m benchmarks.guidance [SECTION ...] [--seeds 0 1 2] [--workers 2] [--output outputs/guidance]

mixture     a prior known exactly: bias, noise of the gradient, coverage of modes (minutes)
directions  cosine of each method's gradient with the true residual, by timestep (minutes)
corpus      the 16 prompts of the quickstart at equal denoiser calls (hours)
single      two prompts, each in a separate run (an hour)
four-views  the same 16 prompts from the multi-view prior
shift       ASD with and without its shift
nulls       LODS with learned nulls and with the plain one
fronts      Janus faces: one view, one view with view words, four views with cameras
diversity   different outcomes of prompts that leave a word open

The runs are ordinary training runs under OUTPUT/runs; finished ones are reused. Prints tables and writes them
to OUTPUT as JSON, with plots as PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amortized.checkpointing import list_checkpoints
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.guidance import METHODS
from benchmarks import directions, diversity, mixture, plots
from benchmarks.studies import (
    ROOT,
    Study,
    Variant,
    jobs_of,
    parsed,
    report,
    run_study,
    study_parser,
    table,
)

EXACT = ("recall_at_1", "iou", "color_error", "clip_similarity")
# ASD, the baseline, is the quickstart itself. Every other method has a tuned preset with as many denoiser
# calls.
PRESETS = {"asd": Variant(preset="quickstart")} | {
    method: Variant(preset=f"methods/{method}") for method in METHODS if method != "asd"
}


def single_prompt(preset: Variant) -> Variant:
    """Return the variant for one prompt per run: half the steps, four views of that prompt per step."""
    steps = load_config(RunConfig, preset.path).trainer.steps // 2
    images = ("trainer.prompts_per_process=1", "trainer.views_per_prompt=4", f"trainer.steps={steps}")
    return replace(preset, changes=images)


NO_VIEW_WORDS = ("views.direction_step_deg=0", "views.suffixes=['', '', '', '']")
# As in configs/shapes16-multi-view.yaml, with the same number of images per step.
FOUR_VIEWS = (
    "prior.path=checkpoints/shapes-multi-view",
    "prior.num_views=4",
    "cameras.ring=true",
    *NO_VIEW_WORDS,
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
        title="Methods on single objects, at equal denoiser calls",
        variants={name: single_prompt(preset) for name, preset in PRESETS.items()},
        columns=EXACT,
        separate_prompts=("a green torus", "a blue cone"),
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
            # Nothing is learned, so the same number of calls allows 1.5 times the steps.
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
            "one view": Variant(preset="methods/fronts", changes=NO_VIEW_WORDS),
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
# Which part of DSD makes assets differ: its reference, or its noise? And of the noise, the trajectory or the
# seed?
DSD_ABLATIONS = {
    "dsd, the noise as reference": Variant(
        preset="methods/open-dsd", changes=("guidance.reference=noise", "trainer.steps=291")
    ),
    "dsd, a trajectory of one step": Variant(
        preset="methods/open-dsd", changes=("guidance.trajectory.num_steps=1", "trainer.steps=296")
    ),
}
SECTIONS = ("mixture", "directions", *STUDIES)


def rows_of(section: str, seeds: Sequence[int], folder: Path, workers: int) -> list[dict]:
    """Return a section's table, after training and evaluating its missing runs."""
    if section == "mixture":
        return [{"seed": seed, **row} for seed in seeds for row in mixture.measure(seed)]
    if section == "directions":
        return directions_rows(seeds, folder)
    study = STUDIES[section]
    results = run_study(study, variants=study.variants, seeds=seeds, folder=folder, workers=workers)
    if section == "diversity":
        runs = {name: jobs_of(study, name, seeds, folder) for name in study.variants}
        configs = {
            name: [load_config(RunConfig, v.path, [*v.changes, f"seed={seed}"]) for seed in seeds]
            for name, v in {**study.variants, **DSD_ABLATIONS}.items()
        }
        return diversity.measure(
            {name: [job.folder for [job] in of_name] for name, of_name in runs.items()}, configs
        )
    return table(study, results)


def directions_rows(seeds: Sequence[int], folder: Path) -> list[dict]:
    """Measure directions under both embedded priors, from a ball and from the corpus run, if it exists."""
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
    args = parsed(study_parser("guidance", __doc__, SECTIONS), SECTIONS)
    for section in args.sections:
        rows = rows_of(section, args.seeds, args.output, args.workers)
        title = STUDIES[section].title if section in STUDIES else section.capitalize()
        report(section, title, rows, args.seeds, args.output)
        if section == "directions":
            plots.lines(rows, directions.TIMES, args.output / "directions.png", title)
        elif section in STUDIES:
            plots.intervals(rows, args.output / f"{section}.png", title)


if __name__ == "__main__":
    main()
