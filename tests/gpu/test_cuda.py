"""What CUDA must do as the CPU does. Run with `make test ARGS="-m gpu"` on a machine with a GPU."""

import pytest
import torch

from amortized.parallel import World
from benchmarks.timing import waits
from tests.training.toy import TINY, interrupted_at, log_lines, make_trainer, weights_of

pytestmark = pytest.mark.gpu


def losses(folder) -> list[float]:
    return [line["loss"] for line in log_lines(folder)]


@pytest.mark.parametrize("generator", [None, "with-environment", *TINY])
def test_steps_see_the_batches_of_the_cpu_and_lose_alike(world: World, tmp_path, generator):
    own = make_trainer(tmp_path / "own", world, steps=5, generator=generator)
    cpu = make_trainer(tmp_path / "cpu", steps=5, generator=generator)
    own.train(quiet=True)
    cpu.train(quiet=True)
    a, b = log_lines(tmp_path / "own"), log_lines(tmp_path / "cpu")
    assert [line["batch_digest"] for line in a] == [line["batch_digest"] for line in b]
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=5e-3)
    # Small differences grow: Adam makes a step of full size of the smallest gradient.
    assert losses(tmp_path / "own") == pytest.approx(losses(tmp_path / "cpu"), rel=5e-2)


def test_a_checkpoint_moves_to_the_cpu(world: World, tmp_path):
    own = make_trainer(tmp_path, world, steps=10)
    own.train(quiet=True)
    cpu = make_trainer(tmp_path, steps=10)
    assert cpu.train(quiet=True) == 10  # restores the finished run, and has nothing to do
    for name, value in weights_of(own).items():
        assert torch.equal(value.cpu(), weights_of(cpu)[name]), name


def test_a_run_of_the_cpu_goes_on_here(world: World, tmp_path):
    make_trainer(tmp_path, steps=10).train(quiet=True)
    assert make_trainer(tmp_path, world, steps=13).train(quiet=True) == 13
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 14))
    assert all(loss == loss for loss in losses(tmp_path))


def test_a_resumed_run_sees_the_same_batches_and_ends_alike(world, tmp_path):
    """Not bit for bit: atomics add up the gradients of a hash grid in no fixed order."""
    whole = make_trainer(tmp_path / "whole", world, steps=8)
    whole.train(quiet=True)
    assert interrupted_at(make_trainer(tmp_path / "parts", world, steps=8), 4).train(quiet=True) < 8
    resumed = make_trainer(tmp_path / "parts", world, steps=8)
    assert resumed.train(quiet=True) == 8
    for one, other in zip(log_lines(tmp_path / "whole"), log_lines(tmp_path / "parts"), strict=True):
        assert one["batch_digest"] == other["batch_digest"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)


def test_a_step_waits_for_the_device_at_most_once(world: World, tmp_path):
    """Where the renderer must know how many rays there are to render: it shapes tensors."""
    if world.device.type != "cuda":
        pytest.skip("only a CUDA device is waited for")
    trainer = make_trainer(tmp_path, world, steps=4)
    for step in range(2):
        trainer.step(step, False)
    found = waits(lambda: trainer.step(2, False))
    assert len(found) <= 1, found


@pytest.mark.parametrize("generator", [None, *TINY])
def test_a_generator_in_bfloat16_trains(world: World, tmp_path, generator):
    make_trainer(tmp_path, world, steps=4, precision="bfloat16", generator=generator).train(quiet=True)
    assert all(abs(loss) < float("inf") for loss in losses(tmp_path))
