"""Prepares the next batch in a thread while the current step runs, so that a step never waits for text."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `make(step, part)` in a thread, one call ahead of `get`.

    `make` must be a pure function: a batch requested out of order is made again. An exception in `make` is
    raised by the `get` that requests its result.
    """

    def __init__(self, make: Callable[[int, int], T], num_parts: int) -> None:
        self.make, self.num_parts = make, num_parts
        self._pool: ThreadPoolExecutor | None = None
        self._pending: tuple[tuple[int, int], Future[T]] | None = None

    def get(self, step: int, part: int) -> T:
        """Return part `part` of step `step` and start to make the next one."""
        key = (step, part)
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        if self._pending is None or self._pending[0] != key:
            self._pending = key, self._pool.submit(self.make, *key)
        result = self._pending[1].result()
        next_key = (step, part + 1) if part + 1 < self.num_parts else (step + 1, 0)
        self._pending = next_key, self._pool.submit(self.make, *next_key)
        return result

    def close(self) -> None:
        """Wait for a running call and start no other."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = self._pending = None
