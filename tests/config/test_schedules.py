"""Schedules against values worked out by hand."""

import math

import pytest

from amortized.config import check_schedule, check_steps, geometric_at, starts_of, step_at, value_at


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


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 97, 1000])
@pytest.mark.parametrize("steps", [64, (64, 0.4, 256), (8, 0.1, 4, 0.3, 16), (1, 0.7, 2, 0.95, 3)])
def test_each_step_has_the_value_of_the_last_time_that_has_passed(steps, num_steps):
    written = [steps] if isinstance(steps, int) else list(steps)
    expected = []
    for step in range(num_steps):
        value = written[0]
        for time, next_value in zip(written[1::2], written[2::2], strict=True):
            if step / num_steps >= time:
                value = next_value
        expected.append(value)
    assert [step_at(steps, step / num_steps) for step in range(num_steps)] == expected
    starts = starts_of(steps, num_steps)
    assert starts[0] == 0 and len(starts) == len(written[::2])
    for start, time in zip(starts[1:], written[1::2], strict=True):
        assert start / num_steps >= time and (start - 1) / num_steps < time


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (0, "must be at least 1, got 0"),
        (4097, "must be at most 4,096, got 4097"),
        ((64, 0.4), "must be an integer, or .value, time, value, ...."),
        ((64,), "must be an integer, or"),
        ((64, 0.5, 128.5), "must have integers as values"),
        ((64, 0.5, 10**6), "must be at most 4,096"),
        ((64, 2, 128), r"must have times that increase within \(0, 1\)"),
        ((64, 0.5, 128, 0.5, 256), "must have times that increase"),
        ((64, 0, 128), "must have times that increase"),
    ],
)
def test_mistakes_in_steps_name_the_setting(steps, message):
    with pytest.raises(ValueError, match=f"^size {message}"):
        check_steps("size", steps, limit=4096)
