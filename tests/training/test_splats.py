"""Training splats: density control in the step, resume bit for bit, several processes, and the guards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import list_checkpoints, read_part
from amortized.monitoring import TrainingStopped
from amortized.splats import NAMES, RelocationConfig, SplittingConfig
from amortized.training import LossConfig, Trainer, costs
from generators.environment import SHEnvironmentConfig, WithEnvironment
from generators.splats import Splats, SplatsConfig
from tests.training.test_metering import RealMeter
from tests.training.toy import SPLATS, log_lines, make_trainer

NO_RAYS = LossConfig(sparsity=0.0, eikonal=0.0)
RESETS = SPLATS.density_control
CONTROLS = {
    "relocation": RelocationConfig(cap=60, every=3, growth=0.2, min_opacity=0.02, noise=100.0),
    "splitting": RESETS,
    "none": None,
}


def trainer_of(folder: Path, control: object = None, **changes) -> Trainer:
    torch.manual_seed(3)
    config = SplatsConfig(count=30, ball_radius=0.4, density_control=control)
    generator = changes.pop("generator", config.build(3))
    defaults = {"losses": NO_RAYS, "prompts_per_process": 1, "views_per_prompt": 2, "ema_decay": None}
    return make_trainer(folder, generator=generator, **{**defaults, "steps": 20, **changes})


def stored_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    (path,) = [path for path in list_checkpoints(folder / "checkpoints") if path.name.endswith(f"{step:06d}")]
    parts = {part: read_part(path, part) for part in ("generator", "optimizer")}
    return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, name):
    def trainer(folder: str) -> Trainer:
        torch.manual_seed(3)
        splats = SplatsConfig(count=30, ball_radius=0.4, density_control=CONTROLS[name]).build(3)
        generator = WithEnvironment(splats, SHEnvironmentConfig().build(3))
        return trainer_of(tmp_path / folder, generator=generator)

    uninterrupted = trainer("uninterrupted")
    uninterrupted.train(quiet=True)
    stopped = trainer("resumed")
    original = stopped.step
    stopped.step = lambda number, interrupted: original(number, interrupted=interrupted or number + 1 >= 13)
    assert stopped.train(quiet=True) == 13
    resumed = trainer("resumed")
    assert resumed.train(quiet=True) == 20
    lines, expected = (log_lines(tmp_path / folder) for folder in ("resumed", "uninterrupted"))
    assert lines == expected
    counts = [line["splats"] for line in expected]
    assert (counts[12] != counts[0]) == (name != "none"), counts
    actual, wanted = stored_of(tmp_path / "resumed", 20), stored_of(tmp_path / "uninterrupted", 20)
    assert actual.keys() == wanted.keys() and any("exp_avg" in key for key in wanted)
    for key, value in actual.items():
        assert torch.equal(value, wanted[key]), key


@pytest.mark.parametrize("name", CONTROLS)
def test_density_control_obeys_the_cap_and_the_bounds(tmp_path, name):
    trainer = trainer_of(tmp_path, CONTROLS[name])
    trainer.train(quiet=True)
    counts = [line["splats"] for line in log_lines(tmp_path)]
    assert max(counts) <= (30 if name == "none" else 60)
    splats = trainer.state.generator
    assert isinstance(splats, Splats)
    scales = splats.log_scales.exp()
    assert scales.max() <= 0.1 + 1e-6 and (scales.amax(1) / scales.amin(1)).max() < 10.001


def test_a_reset_limits_opacity_and_restarts_its_moments_alone(tmp_path):
    control = SplittingConfig(gradient=1e5, min_opacity=1e-9, start=0, reset_every=5, reset_opacity=0.05)
    trainer = trainer_of(tmp_path, control)
    for step in range(5):
        trainer.step(step)
    trainer.prefetcher.close()
    splats, optimizer = trainer.state.generator, trainer.state.optimizer
    assert torch.sigmoid(splats.logits).max() < 0.0501
    assert not optimizer.state[splats.logits]["exp_avg"].any()
    assert optimizer.state[splats.means]["exp_avg"].any()


def test_each_parameter_has_its_learning_rate(tmp_path):
    trainer = trainer_of(tmp_path, steps=10)
    groups = {group["name"]: group["params"] for group in trainer.state.groups}
    assert set(groups) == set(NAMES) and groups["means"] == [trainer.state.generator.means]
    trainer.train(quiet=True)
    rates = [{name: line[f"learning_rate/{name}"] for name in NAMES} for line in log_lines(tmp_path)]
    assert rates[0]["means"] == pytest.approx(1e-3) and rates[5]["means"] == pytest.approx(1e-4)  # geometric
    assert {rate["colors"] for rate in rates} == {1e-2} and {rate["logits"] for rate in rates} == {5e-2}


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Statistics of renders and gradients are shared, so that all processes keep the same splats."""
    changes = {
        "generator": "splats",
        "prompts_per_process": 1,
        "views_per_prompt": 2,
        "steps": 12,
        "ema_decay": None,
        "losses": None,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.training.toy", str(tmp_path / "two"), json.dumps(changes)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
    one = make_trainer(tmp_path / "one", **changes, gradient_accumulation_steps=2)
    one.train(quiet=True)
    two, one = (log_lines(tmp_path / folder) for folder in ("two", "one"))
    assert [line["splats"] for line in two] == [line["splats"] for line in one]
    assert one[-1]["splats"] != one[0]["splats"]
    for a, b in zip(two, one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    for key, value in stored_of(tmp_path / "two", 12).items():
        if key.startswith("generator"):
            torch.testing.assert_close(value, stored_of(tmp_path / "one", 12)[key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("losses", "monitoring", "sentence"),
    [
        (LossConfig(sparsity=1000.0), {"min_opacity": 0.02}, "the scene has emptied .* for 5 steps"),
        (
            LossConfig(sparsity=0.0, opacity_floor=1000.0, floor=0.98, cap=1.0),
            {"max_opacity": 0.15},
            "fills the whole image .* for 5 steps",
        ),
    ],
)
def test_collapsed_splats_stop_the_run(tmp_path, losses, monitoring, sentence):
    trainer = trainer_of(
        tmp_path,
        losses=losses,
        steps=400,
        monitoring={**monitoring, "patience": 5},
        guidance={"method": "sds", "guidance_scale": 1.0, "weight": 1e-6},
    )
    with pytest.raises(TrainingStopped, match=sentence):
        trainer.train(quiet=True)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_are_not_finite_stop_the_run(tmp_path, name):
    trainer = trainer_of(tmp_path, CONTROLS["relocation"], steps=8)
    original = trainer.step

    def step(number: int, interrupted: bool):
        if number == 3:
            getattr(trainer.state.generator, name).data[0] = torch.nan
        return original(number, interrupted=interrupted)

    trainer.step = step
    with pytest.raises(TrainingStopped, match="not finite"):
        trainer.train(quiet=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strategy": "fsdp2"}, "distributed.strategy=fsdp2 shards parameters, and the number of splats"),
        ({"ema_decay": 0.9}, "trainer.ema_decay=0.9 averages weights over steps, and splats move"),
    ],
)
def test_what_cannot_follow_a_changing_number_is_refused(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        trainer_of(tmp_path, **changes)


def test_an_engine_that_cannot_run_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="splat engine gsplat cannot run: it needs float32 on a CUDA device"):
        trainer_of(tmp_path, renderer={"splat_engine": "gsplat"})


def test_the_memory_of_a_dry_run_is_that_of_the_largest_number_of_splats(tmp_path):
    trainer = trainer_of(tmp_path / "grown", RelocationConfig(cap=40_000), steps=2)
    report = costs.describe(trainer)
    assert "# splats: 30 at the start, at most 40,000" in report
    assert "the splat renderer runs on torch" in report
    assert "# memory: 9 MiB generator with gradients and moments" in report  # 40,000 x 14 x 4 x 4 bytes
    # 30 splats hardly cover the image; the prediction is of an object that does.
    many = SplatsConfig(count=3000, density_control=None)
    trainer = trainer_of(tmp_path / "real", generator=many.build(3))
    batch, meter = trainer.prepare(0, 0), RealMeter()
    with meter, meter.section("step") as cost:
        trainer.objective(batch, 0.0, (True,)).total.backward()
    fake = costs.step_memory(trainer_of(tmp_path / "fake", generator=many.build(3)))
    assert 0.4 < fake / cost.peak < 2.5, (fake, cost.peak)
