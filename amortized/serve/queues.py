"""A queue that serves owners in turn, and requests before batches."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several owners: one from each in turn; background items only when there is no other."""

    def __init__(self) -> None:
        self._levels: tuple[dict[str, deque[T]], ...] = ({}, {})  # owners in the order of their turns
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, item: T, owner: str = "", *, background: bool = False) -> None:
        """Add an item behind those of the same owner."""
        self._levels[background].setdefault(owner, deque()).append(item)
        self._length += 1

    def pop(self) -> T:
        """Remove and return the next item. Raises IndexError if there is none."""
        for level in self._levels:
            if level:
                owner, items = next(iter(level.items()))
                item = items.popleft()
                del level[owner]
                if items:
                    level[owner] = items  # at the end: the others come first
                self._length -= 1
                return item
        raise IndexError("the queue is empty")
