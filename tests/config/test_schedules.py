"""Schedules against values worked out by hand."""

import math

import pytest

from amortized.config import check_schedule, geometric_at, value_at


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (2.5, {0.0: 2.5, 0.7: 2.5, 1.0: 2.5}),
        ((1.0, 3.0), {0.0: 1.0, 0.25: 1.5, 1.0: 3.0}),
        ((0.1, 100.0, 1.0, 0.3), {0.0: 100.0, 0.1: 100.0, 0.2: 50.5, 0.3: 1.0, 1.0: 1.0}),
        ((0.0, 1.0, 3.0, 0.5, 2.0, 1.0), {0.0: 1.0, 0.25: 2.0, 0.5: 3.0, 0.75: 2.5, 1.0: 2.0}),
    ],
)
def test_values(schedule, expected):
    for progress, value in expected.items():
        assert value_at(schedule, progress) == pytest.approx(value), progress


def test_geometric_interpolates_logarithms():
    assert geometric_at(30.0, 0.4) == 30.0
    assert geometric_at((20.0, 80.0), 0.5) == pytest.approx(40.0)
    assert geometric_at((0.0, 1.0, 100.0, 0.5, 10.0, 1.0), 0.25) == pytest.approx(10.0)
    assert geometric_at((0.0, 1.0, 100.0, 0.5, 10.0, 1.0), 0.75) == pytest.approx(math.sqrt(1000.0))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((1.0, 2.0, 3.0), "a schedule is a number"),
        ((0.5, 1.0, 2.0, 0.1), "must increase"),
        ((0.0, 1.0, 2.0, 5.0), "must increase within"),
        (-1.0, "must not go below 0"),
        ((0.0, 1.0, -2.0, 1.0), "must not go below 0"),
    ],
)
def test_mistakes_name_the_setting(schedule, message):
    with pytest.raises(ValueError, match=rf"losses.sparsity.*{message}"):
        check_schedule("losses.sparsity", schedule)
