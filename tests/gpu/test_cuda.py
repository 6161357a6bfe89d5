"""What CUDA must do as the CPU does. Run with `make test ARGS="-m gpu"` on a machine with a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from amortized.training import World
from tests.training.toy import interrupted_at, log_lines, make_trainer, weights_of

pytestmark = pytest.mark.gpu


@pytest.fixture
def world() -> World:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return World(device=torch.device("cuda", 0))


def test_steps_on_cuda_see_the_batches_of_the_cpu_and_lose_alike(world, tmp_path):
    cuda = make_trainer(tmp_path / "cuda", world, steps=5)
    cpu = make_trainer(tmp_path / "cpu", steps=5)
    cuda.train(quiet=True)
    cpu.train(quiet=True)
    a, b = log_lines(tmp_path / "cuda"), log_lines(tmp_path / "cpu")
    assert [line["batch_digest"] for line in a] == [line["batch_digest"] for line in b]
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-2)


def test_a_checkpoint_moves_from_cuda_to_the_cpu(world, tmp_path):
    cuda = make_trainer(tmp_path, world, steps=10)
    cuda.train(quiet=True)
    cpu = make_trainer(tmp_path, steps=10)
    assert cpu.train(quiet=True) == 10  # restores the finished run, and has nothing to do
    for name, value in weights_of(cuda).items():
        assert torch.equal(value.cpu(), weights_of(cpu)[name]), name


def test_a_step_does_not_wait_for_the_device(world, tmp_path):
    """No host synchronization but the two that shape the renderer's tensors."""
    trainer = make_trainer(tmp_path, world, steps=3)
    trainer._step(0, False)
    with pytest.warns(UserWarning) as waits:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer._step(1, False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) <= 2


def test_one_process_on_nccl(world, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    subprocess.run(
        [*command, "-m", "tests.training.toy", str(tmp_path), '{"steps": 3}', "cuda"],
        check=True,
        env=os.environ,
        timeout=240,
    )
    assert log_lines(tmp_path)[-1]["step"] == 3


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
