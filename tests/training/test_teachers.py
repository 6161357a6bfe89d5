"""Several teachers: their gradients add up, each as in its closed form, and nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from amortized.cameras import CameraConfig
from amortized.checkpointing import list_checkpoints, read_part
from amortized.checkpointing.settings import flat_settings, is_resumable
from amortized.commands.compose import load_run_config
from amortized.config import config_to_yaml, map_paths
from amortized.guidance.timesteps import share_in_groups
from amortized.training import BaseRunConfig, LossConfig, costs, objective
from amortized.training.batches import TrainingBatch
from amortized.training.objective import Objective
from amortized.types import Render
from tests.flow_mixture import flow_mixture
from tests.guidance.closed_form import SHAPE, gradient_of, mixture, random_step, rows
from tests.guidance.steps import guidance_for, learned_mixture, relative_error
from tests.tiny_sd import make_tiny_sd
from tests.training.test_batches import make_sampler
from tests.training.test_trainer import stop_after, target_error
from tests.training.toy import LEARNING, learning, log_lines, make_trainer, weights_of

PROGRESS, VIEWS = 0.3, 4
RING = CameraConfig(distance=(2.5, 2.7), fovy_deg=(40, 40), ring=True)


def guidances() -> list:
    """A single-view prior, one of four views, and a rectified flow, each with another method and weight."""
    whole = mixture()
    flow, _ = flow_mixture((whole.means + 1) / 2, whole.stds / 2)
    return [
        guidance_for("lods-embedding", mixture(), weight=0.5, guidance_scale=20.0),
        guidance_for("asd", mixture(views_per_group=VIEWS), weight=2.0),
        guidance_for("csd", flow, weight=0.25),
    ]


def batch_of(num_prompts: int, trainer) -> TrainingBatch:
    """A batch with the draws and texts of `random_step`, other ones for each teacher."""
    batch = trainer.prepare(0, 0)
    steps = [random_step(num_prompts * VIEWS, seed=10 * number) for number in range(3)]
    texts, draws = [text for _, text, _ in steps], [each for _, _, each in steps]
    shared = {name: share_in_groups(getattr(draws[1], name), VIEWS) for name in ("u_timestep", "u_shift")}
    draws[1] = replace(draws[1], **shared)
    return replace(
        batch,
        draws=replace(batch.draws, guidance=draws[0], more_guidance=tuple(draws[1:])),
        prior_text=texts[0],
        more_prior_texts=tuple(texts[1:]),
    )


def image_gradient(teachers, batch, images, learn, monkeypatch):
    """(losses, d loss / d images) of a step whose render is `images` [P, V, h, w, C]."""
    images = images.clone().requires_grad_()
    shown = Render(rgb=images, opacity=torch.ones(images.shape[:-1]), depth=torch.ones(images.shape[:-1]))
    monkeypatch.setattr(objective, "render", lambda *arguments, **keywords: shown)
    config = BaseRunConfig(output="x", corpus="x", prior=None, losses=LossConfig(sparsity=0.0))  # type: ignore[arg-type]
    module = Objective(config, teachers, None, nn.Module(), torch.device("cpu"))
    module.generator.forward = lambda text, z: None  # type: ignore[method-assign]
    losses = module(batch, PROGRESS, learn)
    (gradient,) = torch.autograd.grad(losses.total, images, retain_graph=True)
    return losses, gradient


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_the_gradient_is_the_weighted_sum_of_closed_forms(num_prompts, tmp_path, monkeypatch) -> None:
    teachers, num_images = guidances(), num_prompts * VIEWS
    trainer = make_trainer(
        tmp_path, prompts_per_process=num_prompts, views_per_prompt=VIEWS, cameras=RING, steps=1
    )
    batch = batch_of(num_prompts, trainer)
    images, _, _ = random_step(num_images, seed=7)
    images = images.movedim(1, -1).unflatten(0, (num_prompts, VIEWS))
    learn = (True, True, True)
    losses, gradient = image_gradient(teachers, batch, images, learn, monkeypatch)
    gradient = gradient.flatten(0, 1).movedim(-1, 1)
    texts = (batch.prior_text, *batch.more_prior_texts)
    draws = (batch.draws.guidance, *batch.draws.more_guidance)
    whole = mixture()
    closed = [mixture(), mixture(), flow_mixture((whole.means + 1) / 2, whole.stds / 2)[1]]
    for b in range(num_images):
        expected = torch.zeros(SHAPE, dtype=torch.float64)
        for number, teacher in enumerate(teachers):
            method = ("lods-embedding", "asd", "csd")[number]
            one = slice(b, b + 1)
            latents = images.flatten(0, 1)[one].movedim(-1, 1)
            factor = 2 if number == 2 else 1  # the latents of the flow are from -1 to 1
            latents = 2 * latents - 1 if number == 2 else latents
            item = (latents, rows(texts[number], one), rows(draws[number], one))
            learned = learned_mixture(teacher)
            alone, _, _ = gradient_of(
                closed[number], method, teacher.config, *item, PROGRESS, num_images, learned
            )
            expected += factor * torch.from_numpy(alone)
        assert relative_error(gradient[b], expected) < 1e-7
    # Only the first has a reference model; its loss is that of the teacher alone.
    alone, _ = image_gradient(
        teachers[:1],
        replace(batch, draws=replace(batch.draws, more_guidance=()), more_prior_texts=()),
        images,
        learn[:1],
        monkeypatch,
    )
    torch.testing.assert_close(losses.learned, alone.learned)
    calls = losses.metrics["denoiser_calls"].item()
    assert calls == (2 + 1 + 3 + 2) * num_images
    names = {name for name in losses.metrics if name.startswith("guidance")}
    assert {"guidance", "guidance_2", "guidance_3", "guidance_3/gradient_norm"} <= names


def test_draws_of_a_teacher_change_nothing_else_and_are_its_own() -> None:
    plain = make_sampler().draw(3, range(4), 12)
    sampler = make_sampler(more_latent_sizes=((4, 2, 2), (3, 4, 4)))
    batch = sampler.draw(3, range(4), 12)
    for name, value in vars(plain.guidance).items():
        assert torch.equal(value, getattr(batch.guidance, name)), name
    assert torch.equal(plain.cameras.c2w, batch.cameras.c2w) and torch.equal(plain.z, batch.z)
    first, second = batch.more_guidance
    assert first.noise.shape == (8, 4, 2, 2) and second.noise.shape == (8, 3, 4, 4)
    streams = [each.u_timestep for each in (batch.guidance, first, second)]
    assert len({tuple(each.tolist()) for each in streams}) == 3
    assert len({int(key) for each in (batch.guidance, first, second) for key in each.keys}) == 24
    for each in (first, second):  # of the same assets and prompts
        assert torch.equal(each.seeds, batch.guidance.seeds)
        assert torch.equal(each.prompts, batch.guidance.prompts)
    assert not torch.equal(plain.digests, batch.digests)  # what the log compares
    one = sampler.draw(3, [2], 12)
    assert torch.equal(one.more_guidance[1].noise, second.noise[4:6])
    assert torch.equal(one.digests, batch.digests[2:3])


TEACHERS = {
    "flow": {"prior": "flow", "guidance": {"method": "sds", "guidance_scale": 1.0, "weight": 0.05}},
    "two": {
        "guidance": {"method": "sds", "guidance_scale": 1.0, "weight": 0.05},
        "more_teachers": [
            {"prior": "flow", "guidance": {"method": "sds", "guidance_scale": 1.0, "weight": 0.01}}
        ],
    },
}


@pytest.mark.parametrize("name", TEACHERS)
def test_twenty_steps_approach_the_images_of_the_priors(name, tmp_path) -> None:
    trainer = make_trainer(tmp_path, steps=20, **TEACHERS[name])
    before = target_error(trainer)
    trainer.train(quiet=True)
    assert target_error(trainer) < 0.85 * before


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path) -> None:
    changes = {
        "guidance": learning("lods-embedding"),
        "more_teachers": [{"guidance": {**learning("vsd"), "weight": 0.2}}],
        "steps": 8,
        "checkpointing": {"every": 2},
    }
    uninterrupted = make_trainer(tmp_path / "uninterrupted", **changes)
    start = {name: value.clone() for name, value in weights_of(uninterrupted).items() if "learned" in name}
    rates = {group["name"]: group["lr"] for group in uninterrupted.state.groups if "learned" in group["name"]}
    assert rates == {"learned": 1e-2, "learned_2": 1e-2}
    uninterrupted.train(quiet=True)
    expected = weights_of(uninterrupted)
    for number in (1, 2):
        mine = [name for name in start if name.startswith(f"learned.teacher_{number}.")]
        assert mine and any((start[name] != expected[name]).any() for name in mine)
    first = make_trainer(tmp_path / "resumed", **changes)
    first.step = stop_after(first.step, 5)
    with pytest.raises(KeyboardInterrupt):
        first.train(quiet=True)
    second = make_trainer(tmp_path / "resumed", **changes)
    assert second.train(quiet=True) == 8
    for name, value in weights_of(second).items():
        assert torch.equal(value, expected[name]), name
    assert log_lines(tmp_path / "resumed") == log_lines(tmp_path / "uninterrupted")
    saved = read_part(list_checkpoints(tmp_path / "resumed/checkpoints")[-1], "learned")
    assert {name.split(".")[0] for name in saved} == {"teacher_1", "teacher_2"}


def test_sharded_and_replicated_reference_models_train_together(tmp_path) -> None:
    """FSDP2 shards a learned null and replicates a LoRA: one process computes the same as without it."""
    changes = {
        "guidance": learning("lods-embedding"),
        "more_teachers": [{"guidance": learning("vsd")}],
        "steps": 2,
    }
    worker = [
        "-m",
        "tests.training.toy",
        str(tmp_path / "fsdp2"),
        json.dumps({**changes, "strategy": "fsdp2"}),
    ]
    subprocess.run(
        [sys.executable, *worker], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    make_trainer(tmp_path / "ddp", **changes).train(quiet=True)
    for sharded, whole in zip(*(log_lines(tmp_path / name) for name in ("fsdp2", "ddp")), strict=True):
        assert sharded.pop("batch_digest") == whole.pop("batch_digest") and whole["learned_gradient_norm"] > 0
        assert sharded == pytest.approx(whole, rel=1e-5)  # the norm of two kinds of tensors is rounded twice


def test_each_reference_model_is_trained_at_its_own_rate_and_interval(tmp_path) -> None:
    slow = {**learning("lods-embedding"), "learned": {"learning_rate": 1e-4, "every": 2}}
    trainer = make_trainer(tmp_path, guidance=learning("vsd"), more_teachers=[{"guidance": slow}], steps=4)
    moved = []
    for step in range(4):
        before = trainer.state.learned["teacher_2"].pooled.detach().clone()
        trainer.step(step)
        moved.append((trainer.state.learned["teacher_2"].pooled - before).abs().max().item())
    trainer.prefetcher.close()
    assert [step > 0 for step in moved] == [True, False, True, False]
    assert moved[0] == pytest.approx(1e-4, rel=1e-2)  # Adam's first step
    assert LEARNING["vsd"]["learning_rate"] == 1e-2


def test_a_multi_view_teacher_needs_its_ring_of_views(tmp_path) -> None:
    more = [{"views_per_group": 4}]
    with pytest.raises(ValueError, match=r"prior of more_teachers\[0\] denoises 4 views .*ring=true"):
        make_trainer(tmp_path, more_teachers=more)
    changes = {"more_teachers": more, "views_per_prompt": 4, "cameras": RING, "prompts_per_process": 2}
    trainer = make_trainer(tmp_path, **changes, steps=1)
    timesteps = []
    predict = trainer.teachers[1].guidance.prior.predict_noise

    def recorded(latents, times, *more, **keywords):
        timesteps.append(times)
        return predict(latents, times, *more, **keywords)

    trainer.teachers[1].guidance.prior.predict_noise = recorded
    trainer.step(0)
    trainer.prefetcher.close()
    assert all((times.view(-1, 4) == times.view(-1, 4)[:, :1]).all() for times in timesteps)


def test_the_fingerprint_and_the_dry_run_cover_all_priors(tmp_path) -> None:
    folders = [make_tiny_sd(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    changes = {"prior": str(folders[0]), "steps": 2, "checkpointing": {"every": 1}}
    more = [{"prior": str(folders[1]), "guidance": {"method": "csd"}}]
    trainer = make_trainer(tmp_path / "run", **changes, more_teachers=more)
    report = costs.describe(make_trainer(tmp_path / "dry", **changes, more_teachers=more))
    assert "# prior: StableDiffusionPrior" in report and "# prior_2: StableDiffusionPrior" in report
    assert report.count("MiB prior") == 2
    assert "# denoiser: 20 images per step and process, 5 per rendered image" in report
    assert trainer.train(quiet=True) == 2
    other = [{**more[0], "prior": str(folders[0])}]
    with pytest.raises(ValueError, match="was trained with another prior"):
        make_trainer(tmp_path / "run", **{**changes, "steps": 3}, more_teachers=other).train(quiet=True)


PRESET = "configs/quickstart.yaml"
TEACHER = "more_teachers=[{prior: checkpoints/shapes-multi-view, guidance: {method: sds, weight: 0.5}}]"


def test_settings_of_teachers_are_read_written_and_compared() -> None:
    config = load_run_config(PRESET, [TEACHER, "views.suffixes=[a, b, c, d]"])
    (teacher,) = config.more_teachers or ()
    assert (teacher.prior.path, teacher.guidance.method, teacher.guidance.weight) == (
        "checkpoints/shapes-multi-view",
        "sds",
        0.5,
    )
    assert list(config.teachers) == ["", "more_teachers[0]."]
    assert config.teachers["more_teachers[0]."].views == config.views != teacher.views
    assert config_to_yaml(load_run_config(PRESET)).count("more_teachers: null\n") == 1
    settings = flat_settings(config_to_yaml(config))
    changed = {name for name in settings if name.startswith("more_teachers[0].")}
    assert is_resumable("more_teachers[0].prior.path") and "more_teachers[0].prior.path" in changed
    assert not is_resumable("more_teachers[0].guidance.weight") and not is_resumable("more_teachers")
    moved = map_paths(config, lambda path: f"elsewhere/{path}")
    assert moved.teachers["more_teachers[0]."].prior.path == "elsewhere/checkpoints/shapes-multi-view"


def test_a_written_config_is_read_back(tmp_path) -> None:
    config = load_run_config(PRESET, [TEACHER])
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    assert load_run_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("more_teachers=[]", "more_teachers is an empty list: set it to null"),
        ("more_teachers=[{}]", r"missing required key more_teachers\[0\].prior.path"),
        ("more_teachers=[{prior: x, gidance: {}}]", r"unknown key more_teachers\[0\].gidance"),
        (
            "more_teachers=[{prior: x, guidance: {weight: 0}}]",
            r"more_teachers\[0\].guidance.weight is 0, so this teacher adds nothing",
        ),
        ("more_teachers=[{prior: {path: x, dtype: int8}}]", r"more_teachers\[0\].prior.dtype must be one of"),
        (
            "more_teachers=[{prior: x, guidance: {method: vsd, learned: {weight_decay: 0.1}}}]",
            r"more_teachers\[0\].guidance.learned.weight_decay=0.1 needs optimizer.name=adamw",
        ),
        ("more_teachers=x", "more_teachers must be a list"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_teacher(override, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_run_config(PRESET, [override])
    assert "\n" not in str(caught.value)
