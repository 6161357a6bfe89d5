import math

import numpy as np
import pytest
import torch

from amortized.evaluation.metrics import (
    best_sphere_iou,
    bootstrap_interval,
    chance_recall,
    color_error,
    iou,
    recall_at_1,
)


def test_recall_by_hand_with_ties_and_nan():
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2],  # its own text is best
            [0.1, 0.2, 0.9],  # another text is best
            [0.5, 0.5, 0.1],  # a tie with its own text
            [0.1, 0.5, 0.5],  # a tie among others, both better than its own
            [0.3, 0.1, 0.8],  # its own text is the last column
            [math.nan] * 3,
            [0.9, math.nan, 0.1],  # NaN cannot be beaten
            [-0.1, -0.2, -0.3],
        ]
    )
    column = torch.tensor([0, 1, 0, 0, 2, 0, 0, 0])
    assert recall_at_1(similarity, column).tolist() == [True, False, False, False, True, False, False, True]


def test_recall_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 6, (200, 7), generator=generator).float()  # many ties
    column = torch.randint(0, 7, (200,), generator=generator)
    expected = [
        all(row[column[i]] > value for j, value in enumerate(row) if j != column[i])
        for i, row in enumerate(similarity)
    ]
    assert recall_at_1(similarity, column).tolist() == expected
    assert 0 < sum(expected) < 200


def test_chance_is_the_recall_of_random_similarities():
    similarity = torch.rand(20_000, 5, generator=torch.Generator().manual_seed(1))
    reached = recall_at_1(similarity, torch.zeros(20_000, dtype=torch.long)).float().mean()
    assert abs(reached - chance_recall(5)) < 0.01
    with pytest.raises(ValueError, match="at least one"):
        chance_recall(0)


def test_iou_by_hand():
    a = torch.tensor([-1.0, -1.0, -1.0, 1.0, 0.0])
    b = torch.tensor([1.0, -1.0, -2.0, -3.0, 0.0])  # the surface itself is outside
    assert iou(a, b) == pytest.approx(2 / 4)
    assert iou(torch.stack([a, b]), b).tolist() == pytest.approx([0.5, 1.0])
    assert iou(torch.ones(4), torch.ones(4)) == 0


def grid(resolution: int) -> torch.Tensor:
    centers = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    return torch.cartesian_prod(centers, centers, centers)


def test_iou_of_two_balls_matches_the_volume_of_their_lens():
    points, radius, distance = grid(64), 0.6, 0.4
    a = points.norm(dim=-1) - radius
    b = (points - torch.tensor([distance, 0.0, 0.0])).norm(dim=-1) - radius
    lens = math.pi * (4 * radius + distance) * (2 * radius - distance) ** 2 / 12
    ball = 4 / 3 * math.pi * radius**3
    assert float(iou(a, b)) == pytest.approx(lens / (2 * ball - lens), abs=0.01)


def test_best_sphere_of_a_ball_is_that_ball_even_off_center():
    points = grid(40)
    assert best_sphere_iou(points.norm(dim=-1) - 0.5, points) == 1.0
    moved = (points - torch.tensor([0.3, -0.2, 0.1])).norm(dim=-1) - 0.4
    assert best_sphere_iou(moved, points) > 0.97


def test_best_sphere_against_a_search_over_radii():
    points = grid(24)
    box = (points.abs() - torch.tensor([0.5, 0.3, 0.6])).amax(-1)
    radius = points.norm(dim=-1)
    # A ball changes only when it reaches another grid point, so these radii cover all balls.
    search = max(float(iou(radius - r, box)) for r in radius.double().unique().float() + 1e-6)
    assert best_sphere_iou(box, points) == pytest.approx(search, abs=1e-6)
    assert best_sphere_iou(torch.ones(len(points)), points) == 0.0


def test_color_error_by_hand():
    rgb = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0.2, 0.2, 0.2], [0.2, 0.2, 0.2]]])
    true = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert color_error(rgb, true).tolist() == pytest.approx([0.5, (0.8 + 0.2 + 0.2 + 0.8 * 3) / 6])


def test_bootstrap_is_deterministic_and_brackets_the_mean():
    values = [0.1, 0.9, 0.4, 0.5, 0.7]
    first = bootstrap_interval(values, seed=3)
    assert first == bootstrap_interval(values, seed=3)
    assert first != bootstrap_interval(values, seed=4)
    assert first.low < first.mean < first.high and first.n == 5
    assert first.mean == pytest.approx(0.52)
    narrow = bootstrap_interval(values, seed=3, level=0.5)
    assert first.low < narrow.low < narrow.high < first.high


def test_bootstrap_edges():
    one = bootstrap_interval([0.25], seed=0)
    assert (one.mean, one.n) == (0.25, 1) and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(bootstrap_interval([0.1, math.nan], seed=0).low)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([], seed=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], seed=0, level=95)


def test_bootstrap_agrees_with_normal_theory():
    values = np.random.default_rng(0).normal(2.0, 0.5, 400)
    interval = bootstrap_interval(values, seed=0, num_resamples=8000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_has_its_nominal_coverage():
    rng = np.random.default_rng(1)
    samples = rng.normal(0.0, 1.0, (300, 50))
    intervals = [bootstrap_interval(s, seed=i, num_resamples=500) for i, s in enumerate(samples)]
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert 0.89 < covered < 0.985  # 0.95 minus the small-sample loss, 3 standard errors either way
