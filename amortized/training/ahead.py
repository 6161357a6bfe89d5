"""The next batch is made by a thread while the step before it runs: a step never waits for text."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from amortized.conditioning import ViewText
from amortized.training.sampler import Batch
from amortized.types import TextCondition

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A batch with its text, on the CPU."""

    batch: Batch
    read: TextCondition  # P rows, of the generator
    told: ViewText  # P * V images, of the prior


class Ahead(Generic[T]):
    """Calls `make(step, part)` in a thread, one call ahead of those that are asked for.

    `make` must be a pure function: asked out of order, it is simply called again. What it raises is
    raised where its result is asked for.
    """

    def __init__(self, make: Callable[[int, int], T], num_parts: int) -> None:
        self.make, self.num_parts = make, num_parts
        self._pool: ThreadPoolExecutor | None = None
        self._coming: tuple[tuple[int, int], Future[T]] | None = None

    def get(self, step: int, part: int) -> T:
        """Part `part` of step `step`; then the next one is begun."""
        wanted = (step, part)
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        if self._coming is None or self._coming[0] != wanted:
            self._coming = wanted, self._pool.submit(self.make, *wanted)
        result = self._coming[1].result()
        after = (step, part + 1) if part + 1 < self.num_parts else (step + 1, 0)
        self._coming = after, self._pool.submit(self.make, *after)
        return result

    def close(self) -> None:
        """Wait for what has begun, and begin nothing more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = self._coming = None
