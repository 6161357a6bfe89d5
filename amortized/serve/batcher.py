"""Micro-batches: what arrives within a few milliseconds is made in one call of the engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from amortized.serve.logs import log, where
from amortized.serve.problems import Failure
from amortized.serve.queues import FairQueue

SIZES = (1, 2, 4, 8, 16)  # of batches: few, since each is compiled or captured once
RESERVE = 0.1  # of the free memory stays free


@dataclass(eq=False)
class _Entry:
    item: Any
    future: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Turns items into results, several in one call of `work`, which runs in `thread`.

    A batch begins when it has `size` items, or `wait_s` after its first. If `work` fails, its items are tried
    one by one, so that only the guilty one fails. Items whose requester has gone are skipped.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        thread: Executor,
        *,
        size: int,
        wait_s: float = 0.0,
        limit_s: float = 60.0,
        on_batch: Callable[[int, float], None] = lambda size, waited_s: None,
    ) -> None:
        """`limit_s` is how long a call may take before its items fail; the call itself cannot be ended.

        `on_batch` receives the size of each batch, and how long its first item waited.
        """
        self.size, self.wait_s, self.limit_s = size, wait_s, limit_s
        self._work, self._thread, self._on_batch = work, thread, on_batch
        self._queue = FairQueue[_Entry]()
        self._full = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self.stuck = False  # a call has exceeded its limit and still runs

    def __len__(self) -> int:
        return len(self._queue)

    async def submit(self, item: Any, owner: str = "", *, background: bool = False) -> Any:
        """The result of an item. Raises Failure, or what `work` raised for this item alone."""
        entry = _Entry(item, asyncio.get_running_loop().create_future())
        self._queue.push(entry, owner, background=background)
        if len(self._queue) >= self.size:
            self._full.set()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        return await entry.future

    async def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of another call in the thread, which is not safe to use from two."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _run(self) -> None:
        while self._queue:
            await self._collect()
            batch = []
            while self._queue and len(batch) < self.size:
                entry = self._queue.pop()
                if not entry.future.done():  # cancelled: nobody waits for it
                    batch.append(entry)
            if batch:
                self._on_batch(len(batch), time.monotonic() - min(entry.since for entry in batch))
                await self._make(batch)

    async def _collect(self) -> None:
        """Wait for more items, unless there are enough."""
        self._full.clear()
        if self.wait_s and len(self._queue) < self.size:
            try:
                async with asyncio.timeout(self.wait_s):
                    await self._full.wait()
            except TimeoutError:
                pass
        else:
            await asyncio.sleep(0)

    async def _make(self, batch: Sequence[_Entry]) -> None:
        items = [entry.item for entry in batch]
        call = asyncio.get_running_loop().run_in_executor(self._thread, _attempt, self._work, items)
        done, _ = await asyncio.wait([call], timeout=self.limit_s)
        if not done:
            self.stuck = True
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(
                        Failure("timeout", f"the preview took over {self.limit_s:g} s")
                    )
            await asyncio.wait([call])  # the thread is busy until then
            self.stuck = False
        for entry, result in zip(batch, call.result(), strict=True):
            if entry.future.done():
                continue
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)


def _attempt(work: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> list[Any]:
    """The result of each item, or the exception."""
    try:
        results = list(work(items))
        assert len(results) == len(items), "the engine returned another number of results"
        return results
    except Exception as error:
        if len(items) == 1:
            return [error]
        log("batch failed", level=logging.WARNING, size=len(items), error=where(error))
        return [_attempt(work, [item])[0] for item in items]


def fit_size(peaks: dict[int, int], free: int) -> int:
    """The largest of SIZES whose batch fits into `free` bytes, by a line through measured peaks.

    `peaks` are bytes beyond the model's own by the number of items, of two batches or more.
    """
    numbers = list(peaks)
    mean_n, mean_peak = sum(numbers) / len(numbers), sum(peaks.values()) / len(peaks)
    spread = sum((n - mean_n) ** 2 for n in numbers)
    slope = max(0.0, sum((n - mean_n) * (peaks[n] - mean_peak) for n in numbers) / spread)
    start = max(0.0, mean_peak - slope * mean_n)
    fitting = [size for size in SIZES if start + slope * size <= (1 - RESERVE) * free]
    return max(fitting, default=1)
