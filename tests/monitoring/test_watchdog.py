"""The watchdog ends stuck processes, and no others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from amortized.monitoring import Watchdog
from amortized.monitoring.forecast import forecast
from amortized.parallel import World


def work(folder: Path, timeout_s: float, silent_s: float) -> None:
    """Beat once, be silent, then exit with status 0."""
    sys.stderr = open(os.devnull, "w")
    watchdog = Watchdog(folder, World(), timeout_s)
    watchdog.beat("a step")
    (folder.parent / "silent").touch()
    for _ in range(round(10 * silent_s)):  # short sleeps: a stop prolongs only the one that it meets
        time.sleep(0.1)
    watchdog.close()
    os._exit(0)


def start(folder: Path, timeout_s: float, silent_s: float) -> multiprocessing.process.BaseProcess:
    arguments = (folder, timeout_s, silent_s)
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    while not (folder.parent / "silent").exists():
        time.sleep(0.01)
    return process


def test_a_process_that_was_stopped_for_longer_than_the_limit_is_not_stuck(tmp_path):
    process = start(tmp_path / "stacks", timeout_s=2.0, silent_s=0.8)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGCONT)
    process.join(20)
    assert process.exitcode == 0 and not (tmp_path / "stacks").exists()


@pytest.mark.parametrize("writable", [True, False])
def test_a_stuck_process_ends_even_if_its_stacks_cannot_be_written(tmp_path, writable):
    folder = tmp_path / "stacks"
    if not writable:
        folder.write_text("a file")
    process = start(folder, timeout_s=0.5, silent_s=60)
    process.join(20)
    assert process.exitcode == 1
    assert not writable or "a step" in (folder / "process_00000.txt").read_text()


def test_a_forecast_needs_two_steps_and_some_to_come():
    assert forecast([3.0], 5) is None and forecast([3.0, 2.0], 0) is None
    text = forecast([30.0, 2.0], 1000)
    assert text == "a step takes 2 s (the first took 30 s): about 33 min 20 s for the remaining 1,000 steps"
