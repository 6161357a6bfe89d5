"""Training with a tiny Stable Diffusion as the prior: LoRA, one trajectory per seed, the fingerprint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amortized.checkpointing import list_checkpoints, read_part
from tests.tiny_sd import make_tiny_sd
from tests.training.test_trainer import stop_after
from tests.training.toy import log_lines, make_trainer, weights_of

VSD = {"method": "vsd", "guidance_scale": 2.0, "learned": {"learning_rate": 1e-2, "rank": 2}}
DSD = {"method": "dsd", "guidance_scale": 2.0, "trajectory": {"num_steps": 2}}
RUNS = {
    "lora": {"guidance": VSD},
    "seeds": {"guidance": DSD, "z_dim": 2, "seeds_per_prompt": 3},
}


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("sd")))


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(prior, tmp_path, run):
    changes = {**run, "prior": prior, "steps": 6, "checkpointing": {"every": 2}}
    uninterrupted = make_trainer(tmp_path / "uninterrupted", **changes)
    start = {name: value.clone() for name, value in weights_of(uninterrupted).items()}
    uninterrupted.train(quiet=True)
    expected = weights_of(uninterrupted)
    lora = [name for name in start if "lora_B" in name]
    assert bool(lora) == (run is RUNS["lora"])
    assert all((expected[name] != start[name]).any() for name in lora)  # every matrix has learned
    first = make_trainer(tmp_path / "resumed", **changes)
    first.step = stop_after(first.step, 3)
    with pytest.raises(KeyboardInterrupt):
        first.train(quiet=True)
    second = make_trainer(tmp_path / "resumed", **changes)
    assert second.train(quiet=True) == 6
    for name, value in weights_of(second).items():
        assert torch.equal(value, expected[name]), name
    assert log_lines(tmp_path / "resumed") == log_lines(tmp_path / "uninterrupted")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_two_processes_equal_one_with_twice_the_batch(prior, tmp_path, run):
    changes = {**run, "prior": prior, "steps": 3}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = [
        "-m",
        "tests.training.toy",
        str(tmp_path / "two"),
        json.dumps({**changes, "prompts_per_process": 2}),
    ]
    subprocess.run([*command, *worker], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=180)
    one = make_trainer(tmp_path / "one", **changes, prompts_per_process=4)
    one.train(quiet=True)
    expected, lines = log_lines(tmp_path / "one"), log_lines(tmp_path / "two")
    assert [line["batch_digest"] for line in lines] == [line["batch_digest"] for line in expected]
    for a, b in zip(lines, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert (a["denoiser_calls"], a["gradient_calls"]) == (b["denoiser_calls"], b["gradient_calls"])
    (saved,) = list_checkpoints(tmp_path / "two" / "checkpoints")
    if one.state.learned is not None:
        for name, value in read_part(saved, "learned").items():
            torch.testing.assert_close(value, one.state.learned.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_run_resumes_only_with_the_weights_of_its_prior(prior, tmp_path):
    """A LoRA would also load into another UNet of the same shapes: only the fingerprint can tell."""
    copy, changes = tmp_path / "prior", {"guidance": VSD, "prior": str(tmp_path / "prior"), "steps": 2}
    shutil.copytree(prior, copy)
    make_trainer(tmp_path / "run", **changes, checkpointing={"every": 1}).train(quiet=True)
    again = make_trainer(tmp_path / "run", **{**changes, "steps": 3}, checkpointing={"every": 1})
    assert again.train(quiet=True) == 3
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    changed = load_file(weights)
    name = next(name for name in changed if name.endswith("attn2.to_q.weight"))
    save_file(changed | {name: changed[name] + 0.01}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="step_000003 was trained with another prior than prior.path now"):
        make_trainer(tmp_path / "run", **{**changes, "steps": 4}).train(quiet=True)


def test_a_lora_of_another_rank_is_refused(prior, tmp_path):
    make_trainer(tmp_path, guidance=VSD, prior=prior, steps=1, checkpointing={"every": 1}).train(quiet=True)
    wider = {**VSD, "learned": {**VSD["learned"], "rank": 3}}
    with pytest.raises(
        ValueError, match="step_000001 does not fit the model of this config .*learned.*"
    ) as error:
        make_trainer(tmp_path, guidance=wider, prior=prior, steps=2).train(quiet=True)
    assert "\n" not in str(error.value)


def test_assets_without_distinct_z_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="seeds_per_prompt=4 trains 4 assets per prompt, .* takes no z"):
        make_trainer(tmp_path, seeds_per_prompt=4)
    with pytest.raises(ValueError, match="noise=seed has one trajectory per asset, .* set trainer.seeds"):
        make_trainer(tmp_path, z_dim=2, guidance=DSD)
    make_trainer(tmp_path, z_dim=2, guidance=DSD, seeds_per_prompt=4)
    make_trainer(tmp_path, guidance=DSD)
