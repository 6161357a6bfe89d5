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
from amortized.monitoring.forecast import duration, forecast
from amortized.parallel import World

TIMEOUT_S = 0.6


def work(folder: Path, silent_s: float) -> None:
    """Beat for a while, be silent, then exit with status 0."""
    sys.stderr = open(os.devnull, "w")
    watchdog = Watchdog(folder, World(), TIMEOUT_S)
    for _ in range(10):
        watchdog.beat("a step")
        time.sleep(0.05)
    end = time.process_time() + silent_s
    while time.process_time() < end:  # this process's own time, which does not pass while it is stopped
        pass
    watchdog.close()
    os._exit(0)


def start(folder: Path, silent_s: float) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder, silent_s))
    process.start()
    return process


def test_a_process_that_was_stopped_for_longer_than_the_limit_is_not_stuck(tmp_path):
    process = start(tmp_path, 0.1)
    for _ in range(2):
        time.sleep(0.15)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2 * TIMEOUT_S)
        os.kill(process.pid, signal.SIGCONT)
    process.join(20)
    assert process.exitcode == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("writable", [True, False])
def test_a_stuck_process_ends_even_if_its_stacks_cannot_be_written(tmp_path, writable):
    folder = tmp_path / "stacks"
    if not writable:
        folder.write_text("a file")
    process = start(folder, 60)
    process.join(20)
    assert process.exitcode == 1
    assert not writable or "a step" in (folder / "process_00000.txt").read_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.354, "0.35 s"),
        (9.96, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (7500, "2 h 5 min"),
    ]
    + [(86400, "1 day"), (86400 * 3 + 3600 * 4.4, "3 days 4 h"), (3599.9, "1 h"), (86399, "1 day")],
)
def test_durations_read_naturally(seconds, text):
    assert duration(seconds) == text


def test_a_forecast_needs_two_steps_and_some_to_come():
    assert forecast([3.0], 5) is None and forecast([3.0, 2.0], 0) is None
    text = forecast([30.0, 2.0], 1000)
    assert text == "a step takes 2 s (the first took 30 s): about 33 min 20 s for the remaining 1,000 steps"
