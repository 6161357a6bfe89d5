"""Schedules written as values, resolved in one place.

    0.5                       constant
    [0.5, 2]                  linear over the whole run
    [0.1, 100, 1, 0.3]        100 until 10 % of the run, linear to 1 at 30 %, then 1
    [0, 1, 3, 0.5, 2, 1]      piecewise: 1 to 3 until half of the run, then to 2 at its end

Times are fractions of the run, so that a longer run keeps its shape.

Whole numbers that jump are written as steps:

    64                        constant
    [64, 0.4, 256]            64 until 40 % of the run, then 256
"""

from __future__ import annotations

import math

Schedule = float | tuple[float, ...]
Steps = int | tuple[int | float, ...]


def value_at(schedule: Schedule, progress: float) -> float:
    """The schedule's value at progress in [0, 1]; raises ValueError on a malformed schedule."""
    times, values = _knots(schedule)
    if progress <= times[0]:
        return values[0]
    for (t0, t1), (v0, v1) in zip(
        zip(times, times[1:], strict=False), zip(values, values[1:], strict=False), strict=True
    ):
        if progress < t1:
            return v0 + (v1 - v0) * (progress - t0) / (t1 - t0)
    return values[-1]


def geometric_at(schedule: Schedule, progress: float) -> float:
    """As `value_at`, interpolating logarithms: for positive scales such as the SDF's sharpness."""
    if isinstance(schedule, (int, float)):
        return float(schedule)
    times = schedule if len(schedule) > 2 else (0.0, *schedule, 1.0)
    # [start, v0, v1, end, v2, end2, ...]: entries 1, 2, 4, 6, ... are values.
    logs = tuple(math.log(x) if i in (1, 2) or (i > 3 and i % 2 == 0) else x for i, x in enumerate(times))
    return math.exp(value_at(logs, progress))


def check_schedule(name: str, schedule: Schedule, *, low: float = 0.0, positive: bool = False) -> None:
    """Raise ValueError naming the setting where a schedule is malformed or goes below `low`."""
    try:
        _, values = _knots(schedule)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if min(values) < low or (positive and min(values) <= 0):
        rule = "be positive" if positive else f"not go below {low:g}"
        raise ValueError(f"{name} must {rule}, got {schedule}")


def times_of(schedule: Schedule) -> list[float]:
    """The times at which a schedule can change its slope; between them it is linear."""
    return _knots(schedule)[0]


def step_at(steps: Steps, progress: float) -> int:
    """The value of steps at progress in [0, 1]."""
    values, times = _parts(steps)
    return values[sum(time <= progress for time in times)]


def largest_of(steps: Steps) -> int:
    """The largest value that steps reach."""
    return max(_parts(steps)[0])


def starts_of(steps: Steps, num_steps: int) -> list[int]:
    """The first optimizer step of each value in a run of `num_steps`; 0 comes first."""
    starts = [0]
    for time in _parts(steps)[1]:
        near = max(0, int(time * num_steps) - 1)  # one too early, whatever the rounding
        starts.append(next(step for step in range(near, num_steps + 1) if step / num_steps >= time))
    return starts


def check_steps(name: str, steps: Steps, *, limit: int) -> None:
    """Raise ValueError naming the setting unless steps are well formed, with values from 1 to `limit`."""
    values, times = _parts(steps)
    shown = list(steps) if isinstance(steps, tuple) else steps
    if isinstance(steps, tuple) and (len(values) < 2 or len(values) != len(times) + 1):
        raise ValueError(
            f"{name} must be an integer, or [value, time, value, ...] with times in fractions of the run, "
            f"got {shown}"
        )
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"{name} must have integers as values, got {shown}")
    if min(values) < 1:
        raise ValueError(f"{name} must be at least 1, got {shown}")
    if max(values) > limit:
        raise ValueError(f"{name} must be at most {limit:,}, got {shown}")
    if sorted(set(times)) != times or not all(0 < time < 1 for time in times):
        raise ValueError(f"{name} must have times that increase within (0, 1), got {shown}")


def _parts(steps: Steps) -> tuple[list[int], list[float]]:
    """The values and the times between them."""
    if isinstance(steps, tuple):
        return list(steps[::2]), list(steps[1::2])  # type: ignore[arg-type]
    return [steps], []


def _knots(schedule: Schedule) -> tuple[list[float], list[float]]:
    if isinstance(schedule, (int, float)):
        return [0.0], [float(schedule)]
    if len(schedule) == 2:
        return [0.0, 1.0], list(schedule)
    if len(schedule) < 4 or len(schedule) % 2:
        raise ValueError(
            f"a schedule is a number, [from, to], or [start, from, to, end, ...] in fractions of the run, "
            f"got {list(schedule)}"
        )
    times = [schedule[0], *schedule[3::2]]
    values = [schedule[1], *schedule[2::2]]
    if sorted(times) != times or len(set(times)) != len(times) or not 0 <= times[0] <= times[-1] <= 1:
        raise ValueError(f"schedule times must increase within [0, 1], got {times} in {list(schedule)}")
    return times, values
