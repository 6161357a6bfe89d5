"""Training on CUDA matches the CPU. Run with `make test ARGS="-m gpu"` on a machine with a GPU."""

import pytest
import torch

from amortized.parallel import World
from benchmarks.timing import waits
from tests.training.toy import TINY, interrupted_at, log_lines, make_trainer, weights_of

pytestmark = pytest.mark.gpu


def losses(folder) -> list[float]:
    return [line["loss"] for line in log_lines(folder)]


@pytest.mark.parametrize("generator", [None, "with-environment", *TINY])
def test_steps_have_the_batches_and_losses_of_the_cpu(world: World, tmp_path, generator):
    gpu = make_trainer(tmp_path / "gpu", world, steps=5, generator=generator)
    cpu = make_trainer(tmp_path / "cpu", steps=5, generator=generator)
    gpu.train(quiet=True)
    cpu.train(quiet=True)
    a, b = log_lines(tmp_path / "gpu"), log_lines(tmp_path / "cpu")
    assert [line["batch_digest"] for line in a] == [line["batch_digest"] for line in b]
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=5e-3)
    # Differences grow: Adam takes a full step even if a gradient is only a rounding error.
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=5e-2)


def test_a_checkpoint_loads_on_the_cpu(world: World, tmp_path):
    gpu = make_trainer(tmp_path, world, steps=10)
    gpu.train(quiet=True)
    cpu = make_trainer(tmp_path, steps=10)
    assert cpu.train(quiet=True) == 10  # restores the finished run; no steps are left
    for name, value in weights_of(gpu).items():
        assert torch.equal(value.cpu(), weights_of(cpu)[name]), name


def test_a_run_of_the_cpu_resumes_on_the_gpu(world: World, tmp_path):
    make_trainer(tmp_path, steps=10).train(quiet=True)
    assert make_trainer(tmp_path, world, steps=13).train(quiet=True) == 13
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 14))
    assert all(loss == loss for loss in losses(tmp_path))


def test_a_resumed_run_has_the_same_batches_and_losses(world, tmp_path):
    """Not bit for bit: atomics sum the gradients of a hash grid in no fixed order."""
    make_trainer(tmp_path / "uninterrupted", world, steps=8).train(quiet=True)
    assert interrupted_at(make_trainer(tmp_path / "resumed", world, steps=8), 4).train(quiet=True) < 8
    resumed = make_trainer(tmp_path / "resumed", world, steps=8)
    assert resumed.train(quiet=True) == 8
    for a, b in zip(log_lines(tmp_path / "uninterrupted"), log_lines(tmp_path / "resumed"), strict=True):
        assert a["batch_digest"] == b["batch_digest"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-2)


def test_a_step_waits_for_the_device_at_most_once(world: World, tmp_path):
    """The one wait is for the number of rays to render, which determines shapes."""
    if world.device.type != "cuda":
        pytest.skip("the host waits only for a CUDA device")
    trainer = make_trainer(tmp_path, world, steps=4)
    for step in range(2):
        trainer.step(step)
    events = waits(lambda: trainer.step(2))
    assert len(events) <= 1, events


@pytest.mark.parametrize("generator", [None, *TINY])
def test_a_generator_in_bfloat16_trains(world: World, tmp_path, generator):
    make_trainer(tmp_path, world, steps=4, precision="bfloat16", generator=generator).train(quiet=True)
    assert all(abs(loss) < float("inf") for loss in losses(tmp_path))
