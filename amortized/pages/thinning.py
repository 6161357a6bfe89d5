"""A curve of any length in bounded memory."""

from __future__ import annotations

BUCKETS = 1024


class Thinned:
    """Takes the points of a curve one by one; retains means over equal numbers of neighbors.

    Up to 2 * BUCKETS points are exact; then two neighbors become one, again and again.
    """

    def __init__(self) -> None:
        self._size = 1  # points of a full bucket
        self._buckets: list[tuple[int, float, float]] = []  # points, sum of their x, sum of their y

    def add(self, x: float, y: float) -> None:
        buckets = self._buckets
        if buckets and buckets[-1][0] < self._size:
            buckets[-1] = _sum(buckets[-1], (1, x, y))
            return
        if len(buckets) == 2 * BUCKETS:
            buckets[:] = map(_sum, buckets[::2], buckets[1::2])
            self._size *= 2
        buckets.append((1, x, y))

    def __len__(self) -> int:
        return len(self._buckets)

    def points(self, at_most: int) -> list[tuple[float, float]]:
        """At most so many points (x, y): means over equal numbers of buckets."""
        parts, total = min(at_most, len(self)), len(self)
        bounds = [total * part // parts for part in range(parts + 1)] if parts else []
        means = []
        for start, end in zip(bounds, bounds[1:], strict=False):
            count, xs, ys = self._buckets[start]
            for bucket in self._buckets[start + 1 : end]:
                count, xs, ys = _sum((count, xs, ys), bucket)
            means.append((xs / count, ys / count))
        return means


def _sum(a: tuple[int, float, float], b: tuple[int, float, float]) -> tuple[int, float, float]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
