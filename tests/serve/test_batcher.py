"""Micro-batches and the fair queue, against straightforward models of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.serve.batcher import RESERVE, SIZES, Batcher, fit_size
from amortized.serve.problems import Failure
from amortized.serve.queues import FairQueue


class Work:
    """Squares numbers and records its calls; fails for negative ones."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[list[int]] = []
        self.seconds, self.threads = seconds, set[int]()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [item * item for item in items]


def batched(work: Work, items: Sequence[int], **settings: Any) -> list[Any]:
    """The results or exceptions of items that are submitted at once."""

    async def scenario() -> list[Any]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(work, thread, **settings)
            return await asyncio.gather(*map(batcher.submit, items), return_exceptions=True)

    return asyncio.run(scenario())


@given(st.lists(st.integers(-3, 20), max_size=30), st.integers(1, 9), st.sampled_from([0.0, 0.001]))
def test_every_item_gets_its_own_result_and_only_the_guilty_fail(items, size, wait_s) -> None:
    work = Work()
    results = batched(work, items, size=size, wait_s=wait_s)
    for item, result in zip(items, results, strict=True):
        assert isinstance(result, ValueError) if item < 0 else result == item * item
    assert all(1 <= len(call) <= size for call in work.calls)
    assert len(work.threads) <= 1
    if all(item >= 0 for item in items):  # as few calls as possible
        assert len(work.calls) == -(-len(items) // size)


def test_what_arrives_while_a_call_runs_is_one_batch() -> None:
    async def scenario() -> list[list[int]]:
        with ThreadPoolExecutor(1) as thread:
            batcher, tasks = Batcher(work := Work(0.1), thread, size=8), []
            for item in range(5):
                tasks.append(asyncio.create_task(batcher.submit(item)))
                await asyncio.sleep(0.015)
            await asyncio.gather(*tasks)
        return work.calls

    assert asyncio.run(scenario()) == [[0], [1, 2, 3, 4]]


@pytest.mark.parametrize(("wait_s", "calls"), [(0.0, [[0], [1]]), (0.5, [[0, 1]])])
def test_waiting_joins_what_arrives_a_little_later(wait_s: float, calls: list[list[int]]) -> None:
    async def scenario() -> list[list[int]]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(work := Work(), thread, size=2, wait_s=wait_s)
            first = asyncio.create_task(batcher.submit(0))
            await asyncio.sleep(0.03)
            start = time.monotonic()
            await asyncio.gather(first, batcher.submit(1))
            assert time.monotonic() - start < 0.4  # a full batch does not wait
        return work.calls

    assert asyncio.run(scenario()) == calls


def test_items_whose_requester_has_gone_are_skipped() -> None:
    async def scenario() -> list[list[int]]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(work := Work(0.05), thread, size=4)
            tasks = [asyncio.create_task(batcher.submit(item)) for item in range(12)]
            await asyncio.sleep(0.02)
            for task in tasks[5::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return work.calls

    assert asyncio.run(scenario()) == [[0, 1, 2, 3], [4, 6, 8, 10]]


def test_a_call_beyond_its_limit_fails_its_items_and_no_others() -> None:
    async def scenario() -> list[Any]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(work := Work(0.3), thread, size=1, limit_s=0.1)
            with pytest.raises(Failure) as failure:
                await batcher.submit(1)
            stuck, work.seconds = batcher.stuck, 0.0
            return [failure.value.code, stuck, await batcher.submit(2), batcher.stuck]

    assert asyncio.run(scenario()) == ["timeout", True, 4, False]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_owners_take_turns_and_background_comes_last(pushed) -> None:
    queue = FairQueue[tuple[str, bool, int]]()
    for number, (owner, background) in enumerate(pushed):
        queue.push((owner, background, number), owner, background=background)
    popped = [queue.pop() for _ in range(len(queue))]
    assert sorted(popped, key=lambda one: one[2]) == [(*one, k) for k, one in enumerate(pushed)]
    assert [background for _, background, _ in popped] == sorted(background for _, background in pushed)
    for level in (False, True):
        owners = [owner for owner, background, _ in popped if background is level]
        for k in range(1, len(owners)):  # an owner comes twice in a row only if nobody else waits
            assert owners[k] != owners[k - 1] or set(owners[k:]) == {owners[k]}
        for owner in "abc":
            order = [number for name, background, number in popped if (name, background) == (owner, level)]
            assert order == sorted(order)
    with pytest.raises(IndexError):
        queue.pop()


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**11))
def test_the_size_of_a_batch_fits_the_memory(start: int, item: int, free: int) -> None:
    size = fit_size({n: start + item * n for n in (1, 2, 4)}, free)
    fits = [n for n in SIZES if start + item * n <= (1 - RESERVE) * free]
    assert abs(SIZES.index(size) - SIZES.index(max(fits, default=1))) <= 1  # up to rounding at the limit
    assert size == 1 or start + item * size <= free
