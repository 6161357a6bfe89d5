"""The presets of published runs on corpora: their sizes, schedules and batches, and dry runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from amortized.commands.compose import RunConfig
from amortized.config import config_to_dict, value_at
from amortized.config.presets import flatten
from corpora import PUBLISHED
from generators import build_generator
from tests.config.test_published import EXACT, OF_A_CORPUS, OF_ONE_OBJECT, config_of
from tests.rooms import ROOT

NUM_GPUS = {"asd-sd-3dconv-cp100k": 8, "asd-mv-triplane-dl17k": 8}


def settings_of(config: RunConfig) -> dict[str, Any]:
    return flatten(config_to_dict(config))


def test_every_published_corpus_has_its_preset():
    corpora = {config_of(name).corpus for name in OF_A_CORPUS}
    assert corpora == {"mg15", "df415", "at2520", "cp100k", "dl17k"} <= set(PUBLISHED)
    assert len(OF_ONE_OBJECT) == 10 and len(OF_A_CORPUS) == 6 + len(EXACT)


@pytest.mark.parametrize(
    ("name", "num_weights", "num_background_weights"),
    [
        ("asd-sd-hyper-ingp-mg15", 12_948_464, 131_072 + 64 * 1024 + 2 * 64 + 65 * 2240),
        ("asd-sd-3dconv-at2520", 88_686_923, 9 * 16 + 16 * 16 + 16 * 3),
        ("asd-sd-3dconv-df415", 88_686_923, 9 * 16 + 16 * 16 + 16 * 3),
        ("asd-sd-3dconv-cp100k", 144_798_155, 9 * 16 + 16 * 16 + 16 * 3),
        ("asd-mv-triplane-dl17k", 120_564_480, 9 * 16 + 16 * 16 + 16 * 3),
        ("asd-mv-triplane-dl17k-one-gpu", 120_564_480, 9 * 16 + 16 * 16 + 16 * 3),
    ],
)
def test_generators_have_the_published_number_of_weights(
    name: str, num_weights: int, num_background_weights: int
):
    """Counted in the published code; those of backgrounds by layers: a table, hypernetwork or MLP."""
    config = config_of(name)
    with torch.device("meta"):
        module = build_generator(config.generator, config.environment, 1024)
    background = sum(weights.numel() for weights in module.get_submodule("surroundings").parameters())
    total = sum(weights.numel() for weights in module.parameters())
    assert (total - background, background) == (num_weights, num_background_weights)


@pytest.mark.parametrize(
    ("name", "step", "eikonal", "opaque"),
    [
        ("asd-sd-hyper-ingp-mg15", 0, 100, 0),
        ("asd-sd-hyper-ingp-mg15", 5_000, 1, 0),
        ("asd-sd-hyper-ingp-mg15", 45_000, 1, 5),
        ("asd-sd-3dconv-at2520", 2_500, 50.5, 0),
        ("asd-sd-3dconv-df415", 10_000, 1, 0),
        ("asd-sd-3dconv-df415", 90_000, 1, 5),
        ("asd-sd-3dconv-cp100k", 30_000, 1, 0),
        ("asd-sd-3dconv-cp100k", 270_000, 1, 5),
        ("asd-mv-triplane-dl17k", 0, 0.01, 0),
        ("asd-mv-triplane-dl17k", 90_000, 0.01, 0.5),
        ("asd-mv-triplane-dl17k-one-gpu", 45_000, 0.01, 0.5),
    ],
)
def test_losses_change_at_the_published_steps(name: str, step: int, eikonal: float, opaque: float):
    config = config_of(name)
    progress = step / config.trainer.steps
    losses = config.losses
    assert value_at(losses.sparsity, progress) == 20
    assert value_at(losses.eikonal, progress) == pytest.approx(eikonal)
    assert value_at(losses.opaque, progress) == pytest.approx(opaque)


@pytest.mark.parametrize(
    ("name", "visits"),
    [
        ("asd-sd-hyper-ingp-mg15", 3333),
        ("asd-sd-3dconv-df415", 241),
        ("asd-sd-3dconv-at2520", 20),
        ("asd-mv-triplane-dl17k", 93),
        ("asd-mv-triplane-dl17k-one-gpu", 23),
    ],
)
def test_entries_of_the_file_are_visited_as_often_as_published(name: str, visits: int):
    config = config_of(name)
    entries = PUBLISHED[config.corpus].entries
    assert entries is not None and config.trainer.prompts_per_process == 1
    slots = NUM_GPUS.get(name, 1) * config.trainer.gradient_accumulation_steps
    assert round(config.trainer.steps * slots / entries["train"]) == visits


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_twin_differs_in_samples_and_precision_only(name: str):
    full, exact = settings_of(config_of(name.removesuffix("-exact"))), settings_of(config_of(name))
    differing = {key for key in exact if exact[key] != full.get(key)}
    samples = {"num_coarse", "num_fine", "even_share", "lattice", "min_optical_depth"}
    expected = {"output", "losses.eikonal_samples"} | {f"renderer.{key}" for key in samples}
    assert differing == expected | ({"prior.dtype"} if "-mv-" in name else set())
    assert exact["renderer.num_coarse"] == 128 and exact["renderer.num_fine"] == 128 + 64 + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_A_CORPUS)
def test_a_dry_run_at_full_size_describes_the_run(name: str):
    """With the small embedded priors, whose text is narrower than Stable Diffusion's."""
    prior = "checkpoints/shapes-multi-view" if "-mv-" in name else "checkpoints/shapes-prior"
    overrides = ["corpus=shapes16", f"prior.path={prior}", "prior.dtype=float32", "device=cpu"]
    command = [sys.executable, "train.py", f"configs/published/{name}.yaml", *overrides, "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    config = config_of(name)
    slots = config.trainer.gradient_accumulation_steps
    assert f"name: {config.generator.name}\n" in done.stdout
    assert "# generator: WithEnvironment, " in done.stdout
    assert f"# corpus: 16 training prompts; {slots} per step" in done.stdout
    assert "MiB activations of a step" in done.stdout
