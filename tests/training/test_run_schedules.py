"""Settings that change over a run, or are off by default: runs resume, and costs are those of the largest."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import interpolate

from amortized.cameras import CameraConfig, CameraJitter
from amortized.checkpointing.settings import differing, flat_settings
from amortized.config import config_to_yaml
from amortized.priors import GaussianMixturePrior
from amortized.rendering import PointLightConfig, render
from amortized.training import LossConfig, TrainerConfig
from amortized.training import objective as objective_module
from amortized.training.costs import measure, step_memory
from generators.splats import SplatsConfig
from tests.training.toy import SIZE, log_lines, make_trainer, weights_of

EVERYTHING = {
    "steps": 12,
    "checkpointing": {"every": 4},
    "render_size": (6, 0.5, 8, 0.75, 10),
    "renderer": {"stratified": False, "point_light": PointLightConfig(start=0.25, share=0.6)},
    "cameras": CameraConfig(
        distance=((2.8, 2.4), (3.0, 2.7)),
        fovy_deg=(40, 40),
        jitter=CameraJitter(position=0.1, center=0.1, up=0.02),
    ),
    "losses": LossConfig(sparsity=0.0, convex=(0.0, 1.0, 0.1, 0.4), tv=1.0),
}
# Keys that runs of earlier versions lack.
ADDED = {
    "views.interpolate",
    "cameras.jitter",
    "renderer.point_light",
    "renderer.stratified",
    "losses.convex",
    "losses.tv",
    "optimizer.environment_encoding_learning_rate",
}


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Priors scale images to their own size; the mixture's latents are the images."""
    encode = GaussianMixturePrior.encode

    def scaled(self, images):
        images = interpolate(images.movedim(-1, 1), (SIZE, SIZE), mode="bilinear").movedim(1, -1)
        return encode(self, images)

    monkeypatch.setattr(GaussianMixturePrior, "encode", scaled)


def sizes_of_run(trainer, monkeypatch) -> list[int]:
    """The height of the images of each step of a training."""
    sizes: list[int] = []

    def watch(*args, **settings):
        sizes.append(args[2])
        return render(*args, **settings)

    monkeypatch.setattr(objective_module, "render", watch)
    trainer.train(quiet=True)
    return sizes


def test_a_run_with_all_of_them_resumes_bit_for_bit(tmp_path, monkeypatch):
    whole = make_trainer(tmp_path / "whole", **EVERYTHING)
    assert sizes_of_run(whole, monkeypatch) == [6] * 6 + [8] * 3 + [10] * 3
    lines = log_lines(tmp_path / "whole")
    assert all({"convex", "tv"} <= set(line) for line in lines)

    def stop(number, interrupted):
        if number == 7:
            raise KeyboardInterrupt
        return step(number, interrupted=interrupted)

    first = make_trainer(tmp_path / "resumed", **EVERYTHING)
    step, first.step = first.step, stop
    with pytest.raises(KeyboardInterrupt):
        first.train(quiet=True)
    second = make_trainer(tmp_path / "resumed", **EVERYTHING)
    assert sizes_of_run(second, monkeypatch) == [6] * 2 + [8] * 3 + [10] * 3  # from step 4
    for name, value in weights_of(second).items():
        assert torch.equal(value, weights_of(whole)[name]), name
    by_step = {line["step"]: line for line in log_lines(tmp_path / "resumed")}
    assert [by_step[line["step"]] for line in lines if "loss" in line] == [
        line for line in lines if "loss" in line
    ]


def test_keys_that_an_older_run_lacks_are_off(tmp_path):
    new = flat_settings(config_to_yaml(make_trainer(tmp_path).config))
    assert set(new) >= ADDED and {new[key] for key in ADDED} == {None}
    old = {key: value for key, value in new.items() if key not in ADDED}
    assert differing(old, new) == {}
    assert set(differing(old, {**new, "losses.tv": 1.0})) == {"losses.tv"}


@pytest.mark.parametrize("size", [8, (4, 0.5, 8), (8, 0.5, 4), (4, 0.3, 8, 0.6, 2)])
def test_the_memory_is_that_of_the_largest_images(tmp_path, size):
    trainer = make_trainer(tmp_path, render_size=size)
    plain = make_trainer(tmp_path / "plain", render_size=8)
    assert step_memory(trainer) == step_memory(plain) > step_memory(make_trainer(tmp_path, render_size=4))


def test_the_times_of_all_sizes_are_measured(tmp_path):
    report = measure(make_trainer(tmp_path, render_size=(4, 0.5, 6), steps=100)).splitlines()
    assert [line.split(":")[0] for line in report] == [
        "",
        "# time at 4 px",
        "# time at 6 px",
        "# peak memory",
    ]
    assert all("for the remaining 48 steps" in line for line in report[1:3])


def test_unstratified_samples_are_at_midpoints(tmp_path, monkeypatch):
    """The first loss is that of a run whose uniform numbers all are 0.5."""
    make_trainer(tmp_path / "plain", steps=1, renderer={"stratified": False}).train(quiet=True)
    trainer = make_trainer(tmp_path / "half", steps=1)

    def at_half(*args, u, **settings):
        return render(*args, u=torch.full_like(u, 0.5), **settings)

    monkeypatch.setattr(objective_module, "render", at_half)
    trainer.train(quiet=True)
    losses = [log_lines(tmp_path / name)[0]["loss"] for name in ("plain", "half")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("size", [(64, 0.5), (64, 0.5, 5000), (64, 1.5, 128), (4096, 0.5, 8192)])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match="^render_size must"):
        TrainerConfig(render_size=size)


def test_the_rays_of_the_largest_size_are_limited():
    TrainerConfig(render_size=(4096, 0.5, 64), prompts_per_process=4)
    with pytest.raises(ValueError, match="render_size, .* rays in one forward pass"):
        TrainerConfig(render_size=(64, 0.5, 4096), prompts_per_process=32)


def test_phases_cover_the_run_once():
    for steps in (1, 2, 5, 10, 1000):
        config = TrainerConfig(steps=steps, render_size=(4, 0.35, 6, 0.9, 8))
        covered = [size for _, count, size in config.phases for _ in range(count)]
        expected = [4 if 20 * s < 7 * steps else 6 if 10 * s < 9 * steps else 8 for s in range(steps)]
        assert covered == expected and all(count > 0 for _, count, _ in config.phases)


def test_the_memory_is_that_of_shaded_images(tmp_path):
    """Normals take memory, and the first step, in which no image is shaded, needs none."""
    lights = PointLightConfig(start=0.9)
    lit = make_trainer(tmp_path / "lit", losses=None, renderer={"point_light": lights})
    assert lit.prepare(0, 0).draws.lights is None
    assert step_memory(lit) > step_memory(make_trainer(tmp_path / "plain", losses=None))


def test_splats_have_no_point_light_but_the_terms_of_images(tmp_path):
    config = SplatsConfig(count=30, ball_radius=0.4)
    changes = {"prompts_per_process": 1, "ema_decay": None, "steps": 1, "render_size": 16}
    changes["losses"] = LossConfig(sparsity=0.0, convex=1.0, tv=1.0)
    with pytest.raises(ValueError, match="renderer.point_light shades by the normals of a field"):
        lights = {"point_light": PointLightConfig()}
        make_trainer(tmp_path, generator=config.build(3), renderer=lights, **changes)
    make_trainer(tmp_path, generator=config.build(3), **changes).train(quiet=True)
    (line,) = log_lines(tmp_path)[:1]
    assert {"tv", "convex", "gradient_norm"} <= set(line)


def test_the_change_of_size_is_logged_at_the_start(tmp_path):
    make_trainer(tmp_path, steps=10, render_size=(4, 0.35, 6)).train(quiet=True)
    notes = [
        json.loads(line).get("note", "") for line in (tmp_path / "events.jsonl").read_text().splitlines()
    ]
    assert any("from step 5, images have 6 px" in note for note in notes)
