"""The commands as a user types them, on a tiny random prior."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import evaluate
import train
from amortized import config as settings
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capfd, monkeypatch):
    """Calls a command's main as its console script would; a process each would mostly import torch."""
    monkeypatch.chdir(ROOT)

    def call(script: str, *arguments: str) -> Finished:
        capfd.readouterr()
        try:
            status = {"train.py": train.main, "evaluate.py": evaluate.main}[script](list(arguments))
        except SystemExit as exit:
            status = exit.code
        captured = capfd.readouterr()
        return Finished(int(status or 0), captured.out, captured.err)

    return call


def test_the_commands_are_scripts():
    """One real process: status, one sentence, no traceback."""
    failed = subprocess.run(
        [sys.executable, "train.py", "configs/quickstart.yaml", "trainer.stps=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert failed.returncode == 2
    assert failed.stderr.strip() == (
        "train.py: error: unknown key trainer.stps in the overrides; did you mean trainer.steps?"
    )


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("prior"), prediction_type="v_prediction"))


def small(prior: str, output: Path, *more: str) -> list[str]:
    return [
        "train.py",
        "configs/quickstart.yaml",
        f"prior={prior}",
        f"output={output}",
        "trainer.steps=4",
        "trainer.prompts_per_process=2",
        "trainer.render_size=16",
        "trainer.checkpoint_every=2",
        "trainer.preview_prompts=1",
        *more,
    ]


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
        ("prior=checkpoints/nowhere", "make weights"),
        ("trainer.steps", "KEY=VALUE"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(run, tmp_path, override, sentence):
    failed = run("train.py", "configs/quickstart.yaml", f"output={tmp_path / 'run'}", override)
    assert failed.returncode == 2
    assert sentence in failed.stderr and "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dry_run_shows_what_would_be_and_writes_nothing(run, prior, tmp_path):
    shown = run(*small(prior, tmp_path / "run", "--dry-run"))
    assert shown.returncode == 0, shown.stderr
    for part in (
        "guidance_scale: [1.5, 1.25]",
        "HyperINGP",
        "parameters",
        "MiB",
        "denoiser: 6 images a step",
    ):
        assert part in shown.stdout, part
    assert not (tmp_path / "run").exists()


def test_train_refuse_resume_evaluate(run, prior, tmp_path):
    folder = tmp_path / "run"
    trained = run(*small(prior, folder))
    assert trained.returncode == 0, trained.stderr
    for name in ("config.yaml", "log.jsonl", "tensorboard", "previews", "checkpoints"):
        assert (folder / name).exists(), name
    refused = run(*small(prior, folder))
    assert (
        refused.returncode == 2 and "already holds a run" in refused.stderr and "--resume" in refused.stderr
    )
    other = run(*small(prior, folder, "seed=5", "--resume"))
    assert other.returncode == 2 and "was 'seed: 0', now 'seed: 5'" in other.stderr
    again = run(*small(prior, folder, "--resume"))
    assert again.returncode == 0 and "trained at step 4" in again.stdout
    clip = ROOT / "checkpoints" / "shapes-clip"
    judged = run(
        "evaluate.py",
        str(folder),
        "--prompt",
        "a red cube",
        f"evaluation.clip={clip}",
        "evaluation.views=2",
        "evaluation.turntable_frames=4",
        "evaluation.grid=16",
    )
    assert judged.returncode == 0, judged.stderr
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert {"clip_similarity", "recall_at_1", "iou", "colour_error"} <= set(results["metrics"])
    assert results["chance"]["gallery"] >= 128 and results["prompts"][0]["text"] == "a red cube"
    assert (folder / "evaluation" / "index.html").exists() and (
        folder / "evaluation" / "results.csv"
    ).exists()


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid_and_write_where_their_name_says(preset):
    config = settings.load(train.RunConfig, preset, ["corpus=shapes16", "prior=p"])
    assert config.output == f"outputs/{preset.stem}"


def test_a_prompt_is_a_run_of_its_own(run, prior, tmp_path):
    overrides = [
        o for o in small(prior, tmp_path / "x", 'prompt=a "blue": [cone]') if not o.startswith("output=")
    ]
    shown = run(*overrides, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "output: outputs/quickstart-" in shown.stdout and "corpus: 1 prompts" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "holds no run"),
        (["{run}", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
def test_evaluations_that_cannot_be(run, tmp_path, arguments, sentence):
    (tmp_path / "config.yaml").write_text("corpus: shapes16\noutput: x\nprior: checkpoints/shapes-prior\n")
    failed = run("evaluate.py", *(a.format(run=tmp_path) for a in arguments))
    assert failed.returncode == 2 and sentence in failed.stderr and "Traceback" not in failed.stderr
