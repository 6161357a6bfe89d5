"""Batches made ahead by a thread."""

from __future__ import annotations

import threading
import time

import pytest

from amortized.training.prefetch import Prefetcher


def test_batches_come_in_order_and_one_ahead():
    made: list[tuple[int, int]] = []

    def make(step: int, part: int) -> str:
        made.append((step, part))
        return f"{step}.{part} in {threading.current_thread().name}"

    ahead = Prefetcher(make, num_parts=2)
    found = [ahead.get(step, part) for step in (4, 5) for part in (0, 1)]
    assert [text.split()[0] for text in found] == ["4.0", "4.1", "5.0", "5.1"]
    assert all("prefetch" in text for text in found)
    ahead.close()
    assert made[:4] == [(4, 0), (4, 1), (5, 0), (5, 1)] and made[4:] in ([], [(6, 0)])
    assert ahead.get(9, 1).startswith("9.1")  # after a pause, and out of order
    ahead.close()


def test_making_overlaps_the_step():
    def make(step: int, part: int) -> int:
        time.sleep(0.05)
        return step

    ahead, waited = Prefetcher(make, num_parts=1), []
    for step in range(6):
        start = time.perf_counter()
        assert ahead.get(step, 0) == step
        waited.append(time.perf_counter() - start)
        time.sleep(0.2)  # the step
    ahead.close()
    assert waited[0] >= 0.05 and sorted(waited[1:])[2] < 0.04


def test_what_goes_wrong_is_raised_where_it_is_asked_for():
    def make(step: int, part: int) -> int:
        if step == 1:
            raise ValueError("the shard is damaged")
        return step

    ahead = Prefetcher(make, num_parts=1)
    assert ahead.get(0, 0) == 0
    with pytest.raises(ValueError, match="the shard is damaged"):
        ahead.get(1, 0)
    assert ahead.get(2, 0) == 2
    ahead.close()
