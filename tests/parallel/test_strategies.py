"""Training computes the same with every strategy and number of processes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import read_part
from tests.tiny_sd import make_tiny_sd
from tests.training.toy import learning, log_lines, make_trainer

NEEDS_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="needs deepspeed, and g++ for its first start",
)


def deepspeed_case(*case):
    return pytest.param(*case, marks=NEEDS_DEEPSPEED)


def slow(*case):
    """For releases, not for every change: each case launches processes that import all of torch."""
    marks = [pytest.mark.slow, *([NEEDS_DEEPSPEED] if "zero" in str(case) else [])]
    return pytest.param(*case, marks=marks)


@pytest.mark.parametrize(
    ("strategy", "processes", "generator", "guidance"),
    [
        ("ddp", 2, None, {}),
        slow("ddp", 4, "triplane-transformer", {}),
        slow("ddp", 2, "with-environment", {}),
        slow("ddp", 2, "3dconv-net", {}),
        slow("ddp", 2, None, learning("adapter")),
        slow("ddp", 2, None, learning("lods-lora")),
        slow("fsdp2", 1, None, {}),
        slow("fsdp2", 2, "with-environment", learning("adapter")),
        ("fsdp2", 2, "3dconv-net", learning("lods-lora")),
        ("fsdp2", 4, "triplane-transformer", learning("prompt-nulls")),
        slow("zero1", 1, None, {}),
        slow("zero1", 2, "with-environment", learning("adapter")),
        slow("zero2", 4, None, learning("lods-lora")),
        slow("zero3", 2, "with-environment", {}),
        slow("zero3", 2, "3dconv-net", learning("adapter")),
        slow("zero3", 2, "triplane-transformer", {}),
    ],
    ids=lambda value: value.get("method", "asd") if isinstance(value, dict) else None,
)
def test_many_processes_take_the_steps_of_one(tmp_path, strategy, processes, generator, guidance):
    """Same prompts, cameras and noise by digest; the same losses and weights up to rounding."""
    changes = {"steps": 6, "generator": generator, "guidance": guidance, "monitoring": {"preview_every": 2}}
    if generator == "3dconv-net":
        changes["ema_decay"] = None  # previews then render the trained weights
    distributed = {**changes, "prompts_per_process": 8 // processes, "strategy": strategy}
    run_toy(tmp_path / "many", distributed, processes)
    one = make_trainer(tmp_path / "one", **changes, prompts_per_process=8)
    one.train(quiet=True)
    tolerance = 2e-5 if strategy == "ddp" else 5e-4
    expected, lines = log_lines(tmp_path / "one"), log_lines(tmp_path / "many")
    assert [line["batch_digest"] for line in lines] == [line["batch_digest"] for line in expected]
    for a, b in zip(lines, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)
        assert a["prompts_seen"] == b["prompts_seen"] and a["denoiser_calls"] == b["denoiser_calls"]
    for part in ("generator", "learned") if guidance else ("generator",):
        expected = getattr(one.state, part).state_dict()
        for name, value in read_part(tmp_path / "many/checkpoints/step_000006", part).items():
            # Adam moves a weight by up to the learning rate (1e-2) even if its gradient is a rounding error.
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize(("strategy", "processes"), [slow("ddp", 1), ("fsdp2", 2)])
def test_a_sharded_denoiser_computes_the_same(tmp_path, strategy, processes):
    prior = str(make_tiny_sd(tmp_path / "prior", prediction_type="v_prediction"))
    changes = {"steps": 4, "prior": prior, "generator": "triplane-transformer"}
    distributed = {"prompts_per_process": 4 // processes, "strategy": strategy, "shard_prior": True}
    run_toy(tmp_path / "many", {**changes, **distributed}, processes)
    make_trainer(tmp_path / "one", **changes, prompts_per_process=4).train(quiet=True)
    for a, b in zip(log_lines(tmp_path / "many"), log_lines(tmp_path / "one"), strict=True):
        assert a["batch_digest"] == b["batch_digest"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_a_prior_that_cannot_be_sharded_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="distributed.shard_prior needs a Stable Diffusion"):
        make_trainer(tmp_path, shard_prior=True)


@pytest.mark.slow
def test_fsdp2_in_bfloat16_matches_ddp_with_autocast(tmp_path):
    changes = {"steps": 4, "generator": "triplane-transformer", "precision": "bfloat16"}
    for strategy in ("ddp", "fsdp2"):
        distributed = {**changes, "prompts_per_process": 2, "strategy": strategy}
        run_toy(tmp_path / strategy, distributed, 2)
    changes["precision"] = "float32"
    make_trainer(tmp_path / "float32", **changes, prompts_per_process=4).train(quiet=True)
    ddp, sharded, exact = (log_lines(tmp_path / name) for name in ("ddp", "fsdp2", "float32"))
    for a, b, c in zip(ddp, sharded, exact, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-2)
        assert a["loss"] == pytest.approx(c["loss"], rel=5e-2)
    assert sharded[0]["loss"] != exact[0]["loss"]
    saved = read_part(tmp_path / "fsdp2/checkpoints/step_000004", "generator")
    assert {value.dtype for value in saved.values()} == {torch.float32}


@pytest.mark.parametrize(
    "launches",  # (strategy, processes, accumulation steps, step to stop at)
    [
        (("ddp", 1, 1, 1), ("fsdp2", 2, 3, 3), ("ddp", 3, 1, 5), ("fsdp2", 1, 2, None)),
        slow(
            (
                ("zero3", 2, 1, 2),
                ("zero2", 3, 2, 3),
                ("ddp", 1, 1, 5),
                ("zero3", 1, 3, 6),
                ("zero1", 2, 1, None),
            )
        ),
    ],
    ids=["ddp and fsdp2", "zero"],
)
def test_a_run_resumes_with_another_strategy_on_other_processes(tmp_path, launches):
    """Launches with weights replicated and sharded in turn equal one run up to rounding."""
    changes = {
        "steps": 8,
        "generator": "with-environment",
        "guidance": learning("adapter"),
        "checkpointing": {"every": 50},
    }
    for strategy, processes, accumulation, stop in launches:
        batch = {
            "prompts_per_process": 6 // processes // accumulation,
            "gradient_accumulation_steps": accumulation,
        }
        run_toy(tmp_path / "many", {**changes, **batch, "strategy": strategy, "stop": stop}, processes)
    one = make_trainer(tmp_path / "one", **changes, prompts_per_process=6)
    one.train(quiet=True)
    expected, lines = log_lines(tmp_path / "one"), log_lines(tmp_path / "many")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    for a, b in zip(lines, expected, strict=True):
        assert (a["batch_digest"], a["prompts_seen"]) == (b["batch_digest"], b["prompts_seen"])
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-4)
        assert a.get("learned", 0.0) == pytest.approx(b.get("learned", 0.0), rel=2e-4)
    for part in ("generator", "ema", "learned", "optimizer"):
        expected = read_part(tmp_path / "one/checkpoints/step_000008", part)
        tensors = read_part(tmp_path / "many/checkpoints/step_000008", part)
        assert tensors.keys() == expected.keys()
        for name, value in tensors.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3, msg=name)


STRATEGIES = ["ddp", "fsdp2", deepspeed_case("zero1"), deepspeed_case("zero2"), deepspeed_case("zero3")]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_hundred_steps_equal_those_of_one_process(tmp_path, lines_of_one_process, strategy, processes):
    """Rounding errors accumulate over steps, within bounds."""
    changes = {"prompts_per_process": 8 // processes, "strategy": strategy, **LONG}
    run_toy(tmp_path, changes, processes)
    lines, expected = log_lines(tmp_path), lines_of_one_process
    assert [line["batch_digest"] for line in lines] == [line["batch_digest"] for line in expected]
    errors = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(lines, expected, strict=True)]
    print(f"{strategy} x {processes}: relative error of the loss {max(errors[:50]):.1e}, {max(errors):.1e}")
    assert max(errors[:50]) < 1e-3 and max(errors) < 2e-2
    if strategy == "ddp" and processes == 1:
        assert max(errors) == 0


LONG = {"steps": 200, "checkpointing": {"every": 50}, "guidance": {"method": "sds", "guidance_scale": 1.0}}


@pytest.fixture(scope="module")
def lines_of_one_process(tmp_path_factory) -> list[dict]:
    """The log of 200 steps of one process, without a launcher."""
    folder = tmp_path_factory.mktemp("one")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    changes = json.dumps({"prompts_per_process": 8, **LONG})
    subprocess.run([sys.executable, "-m", "tests.training.toy", str(folder), changes], check=True, env=env)
    return log_lines(folder)


def run_toy(folder: Path, changes: dict, processes: int) -> None:
    """Train the toy under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tests.training.toy", str(folder), json.dumps(changes)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
