"""A thinned curve: bounded, exact while it is short, and with the right mean however long it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.pages.thinning import BUCKETS, Thinned


def thinned(values) -> Thinned:
    curve = Thinned()
    for x, y in enumerate(values, 1):
        curve.add(x, y)
    return curve


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 250))
def test_a_short_curve_is_means_over_neighbors(values, at_most):
    points = thinned(values).points(at_most)
    assert len(points) == min(at_most, len(values))
    if at_most >= len(values):
        assert points == [(float(x), y) for x, y in enumerate(values, 1)]
    elif len(values) % at_most == 0:
        parts = np.array(values).reshape(at_most, -1)
        assert [y for _, y in points] == pytest.approx(parts.mean(1).tolist(), abs=1e-6)


@pytest.mark.parametrize("length", [2 * BUCKETS, 2 * BUCKETS + 1, 5 * BUCKETS, 100_003])
def test_a_long_curve_is_bounded_and_follows_the_values(length):
    x = np.arange(1, length + 1)
    values = np.sin(6 * x / length)
    curve = thinned(values)
    assert len(curve) <= 2 * BUCKETS
    points = np.array(curve.points(500))
    assert len(points) == 500 and (np.diff(points[:, 0]) > 0).all()
    assert np.abs(points[:, 1] - np.sin(6 * points[:, 0] / length)).max() < 1e-3
    assert points[0, 0] < 2 * length / 500 and points[-1, 0] > length * (1 - 2 / 500)
