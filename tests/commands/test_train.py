"""Training: help, mistakes, a dry run, a run from start to end, and a run that a signal stops."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import get_args

import pytest
import torch

import train
from amortized.checkpointing import Resume
from amortized.cli import preset_paths
from amortized.commands.compose import RunConfig, build_untrained
from amortized.config import load_config
from amortized.guidance import METHODS, published
from tests.commands.runs import small
from tests.rooms import ROOT


def test_help_explains_overrides_and_lists_presets(run):
    shown = run("train.py", "--help")
    assert shown.returncode == 0
    assert (
        "KEY=VALUE" in shown.stdout
        and "configs/quickstart.yaml" in shown.stdout
        and "configs/methods/dsd.yaml" in shown.stdout
        and "--dry-run" in shown.stdout
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.stps=3", "did you mean trainer.steps?"),
        ("trainer.steps=many", "trainer.steps must be an integer, got 'many'"),
        ("trainer.steps=0", "trainer.steps must be at least 1, got 0"),
        ("guidance.method=sdf", "guidance.method must be one of"),
        ("generator.name=nerf", "generator.name must be"),
        ("losses.sparsity=[1,2,3]", "losses.sparsity: a schedule is"),
        ("corpus=nowhere", "corpus must be one of"),
        ("prior=checkpoints/nowhere", "or name another one of checkpoints/ (shapes-clip"),
        ("trainer.steps", "KEY=VALUE"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(run, tmp_path, override, sentence):
    failed = run("train.py", "configs/quickstart.yaml", f"output={tmp_path / 'run'}", override)
    assert failed.returncode == 2
    assert sentence in failed.stderr and "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dry_run_shows_the_run_and_writes_nothing(run, prior, tmp_path):
    shown = run(*small(prior, tmp_path / "run", "--dry-run"))
    assert shown.returncode == 0, shown.stderr
    for part in (
        "guidance_scale: [1.5, 1.25]",
        "HyperINGP",
        "parameters",
        "MiB",
        "denoiser: 6 images per step",
        "previews: 1 prompt every 100 steps, scored by checkpoints/shapes-clip, ",
        "12 MiB CLIP of the previews",
    ):
        assert part in shown.stdout, part
    assert not (tmp_path / "run").exists()


def test_a_run_is_refused_or_resumed(run, prior, tmp_path):
    folder = tmp_path / "run"
    trained = run(*small(prior, folder))
    assert trained.returncode == 0, trained.stderr
    for name in ("config.yaml", "log.jsonl", "tensorboard", "previews", "checkpoints"):
        assert (folder / name).exists(), name
    refused = run(*small(prior, folder, "--resume", "never"))
    assert refused.returncode == 2 and "already holds a run" in refused.stderr
    other = run(*small(prior, folder, "seed=5"))
    assert other.returncode == 2 and "seed was 0, now 5" in other.stderr
    again = run(*small(prior, folder))
    assert again.returncode == 0 and "trained at step 4" in again.stdout


def test_the_choices_of_resume_are_those_of_the_run_folder():
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    (resume,) = (action for action in parser._actions if action.dest == "resume")
    assert tuple(resume.choices) == get_args(Resume)


def test_a_signal_ends_with_a_status_that_schedulers_start_again(run, prior, tmp_path):
    """A real process: it saves and exits with 75; the same command resumes to the end."""
    arguments = small(prior, tmp_path / "run", "trainer.steps=60", "checkpointing.every=1000")
    going = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    log, start = tmp_path / "run/log.jsonl", time.monotonic()
    while not (log.exists() and log.stat().st_size > 0):
        assert time.monotonic() - start < 120 and going.poll() is None, "the run did not begin"
        time.sleep(0.02)
    going.send_signal(signal.SIGUSR1)
    output, _ = going.communicate(timeout=60)
    assert going.returncode == 75 and "run the same command to resume" in output
    again = run(*arguments)
    assert again.returncode == 0 and "trained at step 60" in again.stdout, again.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))
    assert [line["step"] for line in lines if "preview/clip_similarity" in line] == [60]


def test_a_prompt_has_a_separate_run(run, prior, tmp_path):
    overrides = [
        o for o in small(prior, tmp_path / "x", 'prompt=a "blue": [cone]') if not o.startswith("output=")
    ]
    shown = run(*overrides, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "output: outputs/quickstart-" in shown.stdout and "corpus: 1 training prompt;" in shown.stdout


@pytest.mark.parametrize("preset", preset_paths(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_presets_are_valid_and_write_where_their_name_says(preset):
    config = load_config(RunConfig, preset, ["corpus=shapes16", "prior=p"])
    twin = "tiny-" if preset.parent.name == "tiny" else ""
    assert config.output == f"outputs/{twin}{preset.stem}"


@pytest.mark.parametrize("preset", ["published/asd-sd-hyper-ingp-mg15", "hyper-ingp-mvdream"])
@pytest.mark.parametrize("method", METHODS)
def test_presets_of_published_priors_have_each_methods_published_schedule(preset, method):
    overrides = ["corpus=shapes16", f"guidance.method={method}"]
    config = load_config(RunConfig, ROOT / f"configs/{preset}.yaml", overrides)
    assert config.guidance == published(method)


def test_initial_weights_depend_on_the_seed_alone():
    """Not on what was drawn before, and nothing drawn later depends on them."""
    config = load_config(RunConfig, ROOT / "configs/quickstart.yaml", ["generator.grid.engine=torch"])
    torch.manual_seed(1)
    first = build_untrained(config, 8, torch.device("cpu")).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    torch.manual_seed(2)
    again = build_untrained(config, 8, torch.device("cpu")).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = build_untrained(replace(config, seed=config.seed + 1), 8, torch.device("cpu")).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
