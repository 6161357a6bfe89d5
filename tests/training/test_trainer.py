"""The training loop: it learns, resumes bit for bit, and stops when continuing is pointless."""

import math
import signal
import subprocess
import sys
import time

import pytest
import torch

from amortized.cameras import CameraConfig
from amortized.checkpointing import list_checkpoints, read_part
from amortized.monitoring import TrainingStopped
from amortized.parallel import OptimizerConfig
from amortized.rendering import render
from amortized.training import LossConfig
from tests.training.toy import LEARNING, TEXTS, learning, log_lines, make_trainer, target_images, weights_of


def target_error(trainer) -> float:
    """The mean squared error of the generator's current images against the means of their components."""
    draws = trainer.sampler.draw(10**6, list(range(6)), 6 * 10**6)
    scene = trainer.state.generator(trainer.bank.generator_text([TEXTS[i] for i in draws.prompt_indices]))
    size = trainer.config.trainer.render_size
    images = render(
        scene,
        draws.cameras,
        size,
        size,
        config=trainer.config.renderer,
        background=draws.background,
        sharpness=30.0,
        training=False,
    ).rgb[:, 0]
    targets = target_images()[draws.prompt_indices].permute(0, 2, 3, 1)
    return (images - targets).square().mean().item()


def test_thirty_steps_approach_the_images_of_the_prior(tmp_path):
    # Only SDS at scale 1 has an expected gradient towards the means of the prior.
    trainer = make_trainer(tmp_path, guidance={"method": "sds", "guidance_scale": 1.0})
    before = target_error(trainer)
    assert trainer.train(quiet=True) == 30
    assert target_error(trainer) < 0.75 * before


def test_a_log_line_has_the_step_its_losses_and_its_batch(tmp_path):
    make_trainer(tmp_path, steps=3).train(quiet=True)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"loss", "guidance", "eikonal", "opacity", "emptied", "gradient_norm", "batch_digest"} <= set(
        lines[0]
    )
    assert len({line["batch_digest"] for line in lines}) == 3
    assert lines[-1]["prompts_seen"] == 12
    assert lines[0]["loss"] == pytest.approx(lines[0]["guidance"] + lines[0]["eikonal"], rel=1e-5)


@pytest.mark.parametrize(
    ("interruption", "guidance"),
    [(10, {}), (20, {}), *((10, learning(name)) for name in LEARNING)],
    ids=["10", "20", *LEARNING],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, interruption, guidance):
    uninterrupted = make_trainer(tmp_path / "uninterrupted", guidance=guidance)
    start = weights_of(uninterrupted)
    start = {name: value.clone() for name, value in start.items() if name.startswith("learned.")}
    uninterrupted.train(quiet=True)
    expected = weights_of(uninterrupted)
    assert len(start) > 0 or not guidance
    assert not start or any((expected[name] != value).any() for name, value in start.items())
    first = make_trainer(tmp_path / "resumed", guidance=guidance)
    first.step = stop_after(first.step, interruption + 3)  # three steps after the last checkpoint are lost
    with pytest.raises(KeyboardInterrupt):
        first.train(quiet=True)
    second = make_trainer(tmp_path / "resumed", guidance=guidance)
    assert second.train(quiet=True) == 30
    for name, value in weights_of(second).items():
        assert torch.equal(value, expected[name]), name
    assert log_lines(tmp_path / "resumed") == log_lines(tmp_path / "uninterrupted")


def test_adan_resumes_bit_for_bit_and_stays_finite(tmp_path):
    """Adan counts steps per parameter group, so its count is not among the checkpoint's tensors."""
    adan = OptimizerConfig(name="adan", learning_rate=1e-2, betas=(0.98, 0.92, 0.99), weight_decay=0.02)
    changes = {"optimizer": adan, "guidance": learning("adapter")}
    uninterrupted = make_trainer(tmp_path / "uninterrupted", **changes)
    uninterrupted.train(quiet=True)
    first = make_trainer(tmp_path / "resumed", **changes)
    first.step = stop_after(first.step, 13)
    with pytest.raises(KeyboardInterrupt):
        first.train(quiet=True)
    second = make_trainer(tmp_path / "resumed", **changes)
    second.train(quiet=True)
    expected = weights_of(uninterrupted)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(second).items())
    # A non-finite step must not reach the weights, although Adan does not support `found_inf`.
    prior = uninterrupted.guidance.prior
    predict = prior.predict_noise
    prior.predict_noise = lambda *args, **kwargs: predict(*args, **kwargs) * math.nan
    record = uninterrupted.step(30)
    assert not all(map(math.isfinite, record.values.tolist()))
    assert all(value.isfinite().all() for value in weights_of(uninterrupted).values())


def test_another_batch_size_continues_in_the_prompt_order(tmp_path):
    """4, 12 and 8 slots per step, as of 1, 3 and 2 processes: no prompt is skipped or repeated."""
    drawn = []
    for steps, slots in ((2, 4), (3, 12), (5, 8)):
        trainer = make_trainer(tmp_path, steps=steps, prompts_per_process=slots, checkpointing={"every": 1})
        draw = trainer.sampler.draw

        def recorded(step, slots, start, draw=draw):
            batch = draw(step, slots, start)
            drawn.append((step, batch.prompt_indices))
            return batch

        object.__setattr__(trainer.sampler, "draw", recorded)
        trainer.train(quiet=True)
    # The step that was prefetched when a run ended is drawn again by the next: the later one counts.
    order = sum((prompts for step, prompts in dict(drawn).items() if step < 5), [])
    assert len(order) == 2 * 4 + 12 + 2 * 8
    assert order == [trainer.sampler.order.at(position) for position in range(len(order))]
    assert [line["prompts_seen"] for line in log_lines(tmp_path)] == [4, 8, 20, 28, 36]


def stop_after(step_function, steps):
    """Wrap Trainer.step to raise KeyboardInterrupt instead of taking step number `steps`, counted from 0."""

    def step(number, interrupted):
        if number == steps:
            raise KeyboardInterrupt
        return step_function(number, interrupted=interrupted)

    return step


LAST = "checkpoints/step_000060"


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    """With a real SIGKILL, at an arbitrary moment."""
    make_trainer(tmp_path / "uninterrupted", steps=60, checkpointing={"every": 5}).train(quiet=True)
    command = [
        sys.executable,
        "-m",
        "tests.training.toy",
        str(tmp_path / "killed"),
        '{"steps": 60, "checkpointing": {"every": 5}}',
    ]
    process = subprocess.Popen(command)
    wait_until(lambda: len(list_checkpoints(tmp_path / "killed" / "checkpoints")) > 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list_checkpoints(tmp_path / "killed" / "checkpoints")[-1].name != "step_000060", (
        "killed after the last checkpoint"
    )
    resumed = make_trainer(tmp_path / "killed", steps=60, checkpointing={"every": 5})
    resumed.train(quiet=True)
    for part in ("generator", "ema", "optimizer"):
        tensors, expected = (read_part(tmp_path / run / LAST, part) for run in ("killed", "uninterrupted"))
        assert tensors.keys() == expected.keys() and len(tensors) > 0
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items())


# The last case is Ctrl-C under torchrun: the terminal signals every process, then torchrun its workers.
@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGUSR1], [signal.SIGINT, signal.SIGTERM]], ids=str
)
def test_a_signal_saves_a_checkpoint_and_exits_cleanly(tmp_path, numbers):
    command = [
        sys.executable,
        "-m",
        "tests.training.toy",
        str(tmp_path),
        '{"steps": 100000, "checkpointing": {"every": 100000}}',
    ]
    process = subprocess.Popen(command)
    wait_until(lambda: (tmp_path / "log.jsonl").exists() and (tmp_path / "log.jsonl").stat().st_size > 0)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.01)
    assert process.wait(timeout=60) == 0  # train.py would return 75
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert log_lines(tmp_path)[-1]["step"] == int(saved.name[-6:])


def wait_until(condition, seconds: float = 90.0) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "the run did not get that far"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "guidance", [{}, learning("adapter"), learning("vsd")], ids=["asd", "adapter", "vsd"]
)
def test_gradient_accumulation_equals_one_large_batch(tmp_path, guidance):
    changes = {"steps": 4, "guidance": guidance}
    large = make_trainer(tmp_path / "large", prompts_per_process=4, **changes)
    parts = make_trainer(tmp_path / "parts", prompts_per_process=2, gradient_accumulation_steps=2, **changes)
    large.train(quiet=True)
    parts.train(quiet=True)
    a, b = log_lines(tmp_path / "large"), log_lines(tmp_path / "parts")
    assert [line["batch_digest"] for line in a] == [line["batch_digest"] for line in b]
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)
        assert x["denoiser_calls"] == y["denoiser_calls"] and (guidance or x["denoiser_calls"] == 4 * 3)
    for name, value in weights_of(large).items():
        torch.testing.assert_close(value, weights_of(parts)[name], rtol=1e-3, atol=1e-5)


def test_a_non_finite_loss_stops_the_run_and_preserves_the_last_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    predict = trainer.guidance.prior.predict_noise
    calls = []

    def poisoned(*args, **kwargs):
        calls.append(1)
        return predict(*args, **kwargs) * (math.nan if len(calls) == 14 else 1.0)

    trainer.guidance.prior.predict_noise = poisoned
    with pytest.raises(
        TrainingStopped, match=r"step 14: .*loss.* not finite; the last good checkpoint is .*step_000010"
    ):
        trainer.train(quiet=True)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000010"]


def test_a_non_finite_step_just_before_a_checkpoint_is_not_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    step = trainer.step

    def poisoned(number, interrupted):
        record = step(number, interrupted=interrupted)
        if record.step == 10:
            record.values.host.fill_(math.nan)
        return record

    trainer.step = poisoned
    with pytest.raises(TrainingStopped, match="no checkpoint was written"):
        trainer.train(quiet=True)
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_a_reference_model_with_a_non_finite_gradient_is_not_saved(tmp_path):
    """The loss and the generator's gradients are finite; only the reference model's are not."""
    trainer = make_trainer(tmp_path, guidance={"method": "lods-embedding"})
    before = {name: value.clone() for name, value in trainer.state.learned.state_dict().items()}
    trainer.state.learned.pooled.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingStopped, match="step 1: learned_gradient_norm not finite"):
        trainer.train(quiet=True)
    assert list_checkpoints(tmp_path / "checkpoints") == []
    for name, value in trainer.state.learned.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("views", "ring"), [(1, True), (8, True), (4, False)])
def test_a_four_view_prior_requires_rings_of_four(tmp_path, views, ring):
    with pytest.raises(ValueError, match="views_per_prompt=4 and cameras.ring=true"):
        make_trainer(tmp_path, views_per_group=4, views_per_prompt=views, cameras=CameraConfig(ring=ring))
    make_trainer(tmp_path, views_per_group=4, views_per_prompt=4, cameras=CameraConfig(ring=True))


def test_an_empty_scene_stops_the_run(tmp_path):
    trainer = make_trainer(
        tmp_path,
        steps=400,
        monitoring={"min_opacity": 0.02, "patience": 5},
        losses=LossConfig(sparsity=1000.0),
        optimizer=OptimizerConfig(learning_rate=2e-2, betas=(0.9, 0.99)),
        guidance={"method": "sds", "guidance_scale": 1.0, "weight": 1e-6},
    )
    with pytest.raises(TrainingStopped, match="the scene has emptied .* for 5 steps.*losses.sparsity"):
        trainer.train(quiet=True)


def test_a_scene_that_fills_the_image_stops_the_run(tmp_path):
    trainer = make_trainer(
        tmp_path,
        steps=400,
        monitoring={"max_opacity": 0.5, "patience": 5},
        losses=LossConfig(sparsity=0.0, opacity_floor=1000.0, floor=0.98, cap=1.0),
        optimizer=OptimizerConfig(learning_rate=2e-2, betas=(0.9, 0.99)),
        guidance={"method": "sds", "guidance_scale": 1.0, "weight": 1e-6},
    )
    with pytest.raises(TrainingStopped, match="fills the whole image .* for 5 steps.*losses.opacity_cap"):
        trainer.train(quiet=True)


def test_the_generator_may_run_in_bfloat16(tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        make_trainer(tmp_path / precision, steps=5, precision=precision).train(quiet=True)
        losses[precision] = [line["loss"] for line in log_lines(tmp_path / precision)]
    assert losses["float32"] != losses["bfloat16"]
    assert losses["float32"] == pytest.approx(losses["bfloat16"], rel=0.05)


def test_old_checkpoints_are_removed(tmp_path):
    make_trainer(tmp_path, steps=30, checkpointing={"every": 5, "keep": 3}).train(quiet=True)
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step_000020", "step_000025", "step_000030"]


def test_previews_are_pictures(tmp_path):
    from PIL import Image

    make_trainer(tmp_path, steps=20, monitoring={"preview_every": 20}).train(quiet=True)
    with Image.open(tmp_path / "previews" / "step_000020.png") as picture:
        assert picture.size[0] >= 4 * 64 and len(picture.getcolors(maxcolors=10**6)) > 10
