"""The presets of published runs: what they must say, their schedules, and their tiny twins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amortized.commands.compose import RunConfig
from amortized.config import load_config, step_at, value_at
from amortized.splats import SplittingConfig
from tests.rooms import ROOT

FOLDER = ROOT / "configs/published"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def config_of(name: str) -> RunConfig:
    return load_config(RunConfig, FOLDER / f"{name}.yaml")


OF_ONE_OBJECT = [name for name in NAMES if config_of(name).prompt is not None]
OF_A_CORPUS = [name for name in NAMES if name not in OF_ONE_OBJECT]
EXACT = [name for name in NAMES if name.endswith("-exact")]


def splitting_of(name: str) -> SplittingConfig:
    control = config_of(name).generator.density_control  # type: ignore[union-attr]
    assert isinstance(control, SplittingConfig)
    return control


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_how_to_run_it_what_it_costs_and_what_differs(name: str):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\noutput:")[0]
    head = " ".join(text.replace("\n# ", " ").split())
    assert re.search(rf"(amortized train|8 train\.py) configs/published/{name}\.yaml prior=", head)
    assert re.search(r"[\d.]+ GiB of weights and activations", head)
    assert re.search(r"at least (\d+ minutes|[\d.]+ hours)", head)
    assert "As published" in head and (
        "Differs" in head or "all else as in" in head or "without settings" in head
    )


@pytest.mark.parametrize("name", OF_ONE_OBJECT)
def test_a_preset_has_a_tiny_twin_with_the_same_parts(name: str):
    full, twin = config_of(name), config_of(f"tiny/{name}")
    assert twin.generator.name == full.generator.name and twin.guidance.method == full.guidance.method
    for part in ("geometry", "density_control"):
        ours, theirs = (getattr(config.generator, part, None) for config in (twin, full))
        assert type(ours) is type(theirs) and (part != "geometry" or ours == theirs)
    assert (twin.prior.num_views, twin.cameras.ring) == (full.prior.num_views, full.cameras.ring)
    assert twin.prior.path.startswith("checkpoints/shapes") and twin.trainer.steps <= 300
    assert twin.trainer.prompts_per_process == full.trainer.prompts_per_process == 1


def test_no_twin_is_alone():
    assert {path.stem for path in (FOLDER / "tiny").glob("*.yaml")} == set(OF_ONE_OBJECT)


def test_splats_change_at_the_published_steps():
    lods, ism = splitting_of("lods-embedding-splats"), splitting_of("ism-splats")
    steps = range(1, 6000)
    assert [step for step in steps if lods.densifies_at(step)] == [400, 500, 600, 700, 800, 900]
    assert not any(lods.resets_at(step) for step in steps)
    assert [step for step in steps if ism.densifies_at(step)] == list(range(200, 3000, 100))
    assert [step for step in steps if ism.resets_at(step)] == list(range(300, 3000, 300))
    assert lods.max_radius == ism.max_radius == 20 / 512


@pytest.mark.parametrize(
    ("name", "step", "size"),
    [
        ("asd-sd-ingp", 9_999, 64),
        ("asd-sd-ingp", 10_000, 256),
        ("asd-mv-ingp", 10_000, 256),
        ("lods-embedding-ingp", 9_999, 256),
        ("lods-lora-ingp", 10_000, 512),
        ("dsd-ingp", 4_999, 128),
        ("dsd-ingp", 5_000, 512),
        ("dsd-ingp-low-res", 4_999, 128),
        ("sdi-ingp", 0, 512),
    ],
)
def test_resolutions_change_at_the_published_steps(name: str, step: int, size: int):
    trainer = config_of(name).trainer
    assert step_at(trainer.render_size, step / trainer.steps) == size


@pytest.mark.parametrize(
    ("step", "levels"), [(0, 8), (1_999, 8), (2_500, 9), (4_000, 12), (5_999, 15), (6_000, 16), (9_999, 16)]
)
def test_levels_of_the_grid_open_every_500_steps(step: int, levels: int):
    config = config_of("dsd-ingp")
    schedule = config.generator.grid.open_levels  # type: ignore[union-attr]
    assert schedule is not None and int(value_at(schedule, step / config.trainer.steps)) == levels


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ONE_OBJECT)
def test_a_tiny_twin_makes_the_object(name: str, tmp_path: Path):
    """The right object among 128 texts, and its shape."""
    overrides = (f"output={tmp_path / 'run'}", "prompt=a blue cone", "monitoring.preview_scores=false")
    for command in (
        ("train.py", f"configs/published/tiny/{name}.yaml", *overrides),
        ("evaluate.py", str(tmp_path / "run"), "evaluation.turntable_frames=0", "evaluation.objects=0"),
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    [row] = json.loads((tmp_path / "run/evaluation/results.json").read_text(encoding="utf-8"))["prompts"]
    print(f"{name}: R@1 {row['recall_at_1']:.2f}, IoU {row['iou']:.3f}, color error {row['color_error']:.3f}")
    assert row["recall_at_1"] >= 0.5 and row["iou"] > 0.6
