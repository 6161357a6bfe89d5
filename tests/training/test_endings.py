"""Numbers that are not finite end a run for good, and mark it; signals end it softly."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from amortized.checkpointing import list_checkpoints
from amortized.monitoring import TrainingStopped
from amortized.parallel import OptimizerConfig
from amortized.training.signals import catch_signals
from tests.checkpointing.test_failures import launch, reported
from tests.commands.runs import small
from tests.rooms import ROOT
from tests.tiny_sd import make_tiny_sd
from tests.training.toy import TINY, make_trainer

GENERATORS = [None, *TINY, "with-environment"]


def poison_after(trainer, step: int, part: str, value: float) -> list[int]:
    """Set a weight of a part to `value` in the update of `step`, counted from 0; returns the steps begun."""
    update, begun = trainer.strategy.update, []

    def poisoned(number):
        begun.append(number)
        norms = update(number)
        if number == step:
            next(trainer.state.modules()[part].parameters()).data.view(-1)[0] = value
        return norms

    trainer.strategy.update = poisoned
    return begun


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["generator", "ema", "learned"])
def test_weights_that_are_not_finite_end_the_run_before_they_are_used(tmp_path, part, value):
    trainer = make_trainer(
        tmp_path, steps=9, checkpointing={"every": 2}, guidance={"method": "lods-embedding"}
    )
    begun = poison_after(trainer, 3, part, value)
    with pytest.raises(TrainingStopped, match=f"step 4: weights/{part} not finite; .*step_000002"):
        trainer.train(quiet=True)
    assert begun == [0, 1, 2, 3]
    assert f"weights/{part}" in (tmp_path / "stopped").read_text()
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000002"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30], ids=str)
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_step_with_useless_weights_reports_them_instead_of_failing(tmp_path, generator, value):
    """On a GPU the next step has begun when the numbers of the last are read."""
    trainer = make_trainer(tmp_path, generator=generator)
    with torch.no_grad():
        for parameter in trainer.state.generator.parameters():
            parameter.fill_(value)
    record = trainer.step(0)
    trainer.prefetcher.close()
    assert not all(map(math.isfinite, record.values.tolist()))


@pytest.mark.parametrize("rate", [1e10, 1e30])
@pytest.mark.parametrize("generator", GENERATORS)
def test_an_absurd_learning_rate_ends_the_run_and_marks_it(tmp_path, generator, rate):
    trainer = make_trainer(
        tmp_path, generator=generator, steps=12, optimizer=OptimizerConfig(learning_rate=rate)
    )
    with pytest.raises(TrainingStopped, match="not finite|emptied|fills"):
        trainer.train(quiet=True)
    assert (tmp_path / "stopped").exists()


@pytest.mark.parametrize("value", [math.nan, 1.0])
def test_an_error_of_a_step_is_explained_by_its_weights_or_kept(tmp_path, value):
    """A generator that fails on NaN, e.g. because it computes an index from it."""
    trainer = make_trainer(tmp_path, steps=3)

    def failing(number, interrupted):
        next(trainer.state.generator.parameters()).data.fill_(value)
        raise IndexError("index -2147483648 is out of range")

    trainer.step = failing
    with pytest.raises(IndexError if value == 1.0 else TrainingStopped):
        trainer.train(quiet=True)
    assert (tmp_path / "stopped").exists() == (value != 1.0)


def test_weights_that_are_not_finite_on_one_process_stop_all(tmp_path):
    status, stderr, _ = launch(tmp_path, steps=30, trouble=[1, 3, "weights"])
    (sentence,) = reported(stderr)
    assert status != 0 and "step 4: weights/generator not finite" in sentence
    assert "weights/generator" in (tmp_path / "stopped").read_text()


def test_the_reason_survives_if_it_cannot_be_written(tmp_path):
    trainer = make_trainer(tmp_path, steps=3)
    (tmp_path / "stopped").mkdir()
    poison_after(trainer, 1, "generator", math.nan)
    with pytest.raises(TrainingStopped, match=r"weights/generator not finite.*stopped could not be written"):
        trainer.train(quiet=True)


# ---- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_acknowledged_while_native_code_runs(number):
    said: list[tuple[float, str]] = []
    before = signal.getsignal(number)
    with catch_signals(lambda text: said.append((time.monotonic(), text)), launched=False) as interrupted:
        assert not interrupted()
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)  # no Python runs in this thread meanwhile
        ended = time.monotonic()
        assert interrupted()
    ((at, text),) = said
    assert at < ended - 0.05
    assert text.startswith(f"{number.name}: training stops after this step")
    assert ("Ctrl-C again" in text) == (number == signal.SIGINT)
    assert signal.getsignal(number) is before and signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(("launched", "raises"), [(False, True), (True, False)])
def test_a_second_interrupt_is_obeyed_unless_a_launcher_repeated_the_first(launched, raises):
    def interrupt_twice() -> None:
        with catch_signals(lambda text: None, launched=launched):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.6)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    if raises:
        with pytest.raises(KeyboardInterrupt):
            interrupt_twice()
    else:
        interrupt_twice()


def test_a_signal_is_obeyed_after_the_current_step(tmp_path):
    trainer = make_trainer(tmp_path, steps=9)
    plain = trainer.step

    def step(number, interrupted):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(number, interrupted=interrupted)

    trainer.step = step
    assert trainer.train(quiet=True) == 5
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000005"]


def test_a_second_ctrl_c_exits_at_once_and_names_the_checkpoint(tmp_path):
    """A real process, in a step that is native code for 100 s."""
    prior = make_tiny_sd(tmp_path / "prior", prediction_type="v_prediction")
    arguments = small(str(prior), tmp_path / "run", "checkpointing.every=1", "trainer.steps=1000")
    stuck = f"""
import hashlib, sys, train
from amortized.training import Trainer
plain = Trainer.step
def step(self, number, **options):
    if number == 2:
        print("stuck", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
    return plain(self, number, **options)
Trainer.step = step
sys.exit(train.main({arguments[1:]!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", stuck], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and any(line == "stuck\n" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75 and time.monotonic() - sent < 20
    assert "SIGINT: training stops after this step" in stdout
    assert "Traceback" not in stderr + stdout
    assert "train.py: interrupted; the last good checkpoint is" in stderr and "step_000002" in stderr
    assert "run the same command to resume" in stderr
