"""The prefetcher prepares batches in a thread, in order, one ahead."""

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

    prefetcher = Prefetcher(make, num_parts=2)
    results = [prefetcher.get(step, part) for step in (4, 5) for part in (0, 1)]
    assert [text.split()[0] for text in results] == ["4.0", "4.1", "5.0", "5.1"]
    assert all("prefetch" in text for text in results)
    prefetcher.close()
    assert made[:4] == [(4, 0), (4, 1), (5, 0), (5, 1)] and made[4:] in ([], [(6, 0)])
    assert prefetcher.get(9, 1).startswith("9.1")  # after a pause, and out of order
    prefetcher.close()


def test_preparing_overlaps_the_step():
    def make(step: int, part: int) -> int:
        time.sleep(0.05)
        return step

    prefetcher, waits = Prefetcher(make, num_parts=1), []
    for step in range(6):
        start = time.perf_counter()
        assert prefetcher.get(step, 0) == step
        waits.append(time.perf_counter() - start)
        time.sleep(0.2)  # the training step
    prefetcher.close()
    assert waits[0] >= 0.05 and sorted(waits[1:])[2] < 0.04


def test_an_error_is_raised_by_the_request_for_its_batch():
    def make(step: int, part: int) -> int:
        if step == 1:
            raise ValueError("the shard is damaged")
        return step

    prefetcher = Prefetcher(make, num_parts=1)
    assert prefetcher.get(0, 0) == 0
    with pytest.raises(ValueError, match="the shard is damaged"):
        prefetcher.get(1, 0)
    assert prefetcher.get(2, 0) == 2
    prefetcher.close()
