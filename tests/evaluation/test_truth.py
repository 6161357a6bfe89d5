import math
from dataclasses import dataclass, replace

import pytest
import torch

from amortized.evaluation.carving import carved
from amortized.evaluation.truth import grid_points, mark_sides, rotate_z, score_truths, surface_points
from amortized.splats import NAMES, from_surface, scene_of
from tests.splats.made import filled_ball


def test_grid_is_made_of_cell_centers():
    points = grid_points(4, 1.0)
    assert points.shape == (64, 3)
    assert points[:, 0].unique().tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75])
    assert points.mean(0).abs().max() < 1e-6


def test_rotation_is_counterclockwise_from_above():
    turned = rotate_z(torch.tensor([[1.0, 0.0, 0.3]]), 90.0)
    assert turned[0].tolist() == pytest.approx([0.0, 1.0, 0.3], abs=1e-6)


def test_an_exact_scene_scores_perfectly(toys):
    ball = toys.Ball(radius=0.55, marked=(0,))
    (scores,) = score_truths(toys.BallScene((ball,)), [ball])
    assert scores.iou == 1.0 and scores.iou_any_azimuth == 1.0 and scores.iou_best_sphere == 1.0
    assert scores.color_error < 1e-4
    assert scores.mark_sides == (True, False, False, False)
    assert scores.iou_start is None


def test_concentric_balls_and_colors_in_closed_form(toys):
    truth = toys.Ball(radius=0.7, albedo=(0.9, 0.1, 0.1))
    generated = toys.Ball(radius=0.5, albedo=(0.5, 0.1, 0.4))
    start = toys.BallScene((toys.Ball(radius=0.3),))
    (scores,) = score_truths(toys.BallScene((generated,)), [truth], start_scene=start)
    assert scores.iou == pytest.approx((0.5 / 0.7) ** 3, abs=0.01)
    assert scores.iou_start == pytest.approx((0.3 / 0.7) ** 3, abs=0.01)
    assert scores.color_error == pytest.approx((0.4 + 0.0 + 0.3) / 3, abs=1e-5)


def test_any_azimuth_matches_a_rotated_object(toys):
    truth = toys.Ball(radius=0.25, center=(0.5, 0.0, 0.1))
    for angle in (90.0, 135.0, 270.0):
        x, y, z = rotate_z(torch.tensor(truth.center), angle).tolist()
        scene = toys.BallScene((toys.Ball(radius=0.25, center=(x, y, z)),))
        (scores,) = score_truths(scene, [truth], resolution=48)
        assert scores.iou < 0.05
        # Rotations by 45 degrees do not map the grid onto itself, so cells at the surface differ.
        assert scores.iou_any_azimuth > (0.9 if angle == 135.0 else 0.999)


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_a_batch_equals_its_items(toys, num_prompts):
    truths = [
        toys.Ball(radius=0.5, marked=(0,)),
        None,
        toys.Ball(radius=0.4, center=(0.2, 0.1, 0.0), albedo=(0.1, 0.2, 0.9)),
    ][:num_prompts]
    generated = (
        toys.Ball(radius=0.45, marked=(0, 2)),
        toys.Ball(radius=0.3),
        toys.Ball(radius=0.5, albedo=(0.5, 0.5, 0.5)),
    )[:num_prompts]
    start = (toys.Ball(radius=0.2), toys.Ball(radius=0.6), toys.Ball(radius=0.7))[:num_prompts]
    batch = score_truths(toys.BallScene(generated), truths, start_scene=toys.BallScene(start), resolution=32)
    one_by_one = [
        score_truths(toys.BallScene((m,)), [t], start_scene=toys.BallScene((s,)), resolution=32)[0]
        for m, t, s in zip(generated, truths, start, strict=True)
    ]
    assert batch == one_by_one
    assert [s is None for s in batch] == [t is None for t in truths]


def test_truth_outside_the_scene_counts_as_missed(toys):
    truth = toys.Ball(radius=0.8)
    scene = toys.BallScene((toys.Ball(radius=2.0),), bounding_radius=0.5)  # solid, but only inside this ball
    (scores,) = score_truths(scene, [truth])
    assert scores.iou == pytest.approx((0.5 / 0.8) ** 3, abs=0.01)
    assert math.isnan(scores.color_error)  # no part of the true surface lies inside the bounding ball


class Box:
    """A cube of half side 0.4: its gradient jumps at edges and corners."""

    def sdf(self, points):
        q = points.abs() - 0.4
        return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def test_surface_points_lie_on_the_surface_and_cover_it():
    points = grid_points(32, 1.0)
    surface = surface_points(Box(), points, Box().sdf(points), spacing=2 / 32, num=1500)
    assert len(surface) > 1200
    assert (surface.abs().amax(-1) - 0.4).abs().max() < 5e-3
    faces = torch.stack([(surface[:, i] * sign > 0.39).sum() for i in range(3) for sign in (-1, 1)])
    assert faces.min() > 0.6 * faces.max()


@pytest.mark.parametrize("sides", [(), (0,), (2,), (0, 1, 2, 3), (1, 3)])
def test_sides_that_show_the_mark(toys, sides):
    truth = toys.Ball(radius=0.5, marked=(0,))
    generated = toys.Ball(radius=0.47, marked=sides)  # a surface slightly inside the true one
    (shown,) = mark_sides(toys.BallScene((generated,)), [truth])
    assert shown == tuple(k in sides for k in range(4))


def test_no_surface_shows_no_mark_and_no_mark_gives_none(toys):
    empty = toys.BallScene((toys.Ball(radius=-1.0, marked=(0, 1, 2, 3)),))
    assert mark_sides(empty, [toys.Ball(marked=(0,))]) == [(False,) * 4]
    scene = toys.BallScene((toys.Ball(), toys.Ball(marked=(0,))))
    assert mark_sides(scene, [toys.Ball(), None]) == [None, None]
    assert mark_sides(scene, [toys.Ball(), toys.Ball(marked=(0,))]) == [None, (True, False, False, False)]


def test_a_mark_off_the_axis_is_probed_along_the_view_direction(toys):
    class Offset(toys.Ball):
        front_mark = (0.4, 0.3, 0.0)  # on the sphere of radius 0.5, seen from +x

        def color(self, points):
            albedo = points.new_tensor(self.albedo).expand(points.shape).clone()
            albedo[(points - points.new_tensor(self.front_mark)).norm(dim=-1) < 0.05] = 1.0
            return albedo

    ball = Offset(radius=0.5)
    assert mark_sides(toys.BallScene((ball,)), [ball]) == [(True, False, False, False)]


def test_splats_are_scored_as_the_solid_of_their_density(toys):
    """A ball of splats against the ball, for the trained scene and for the start."""
    color = (0.9, 0.2, 0.1)
    splats = filled_ball(0.52, color)
    truth = toys.Ball(radius=0.55, albedo=color)
    (scores,) = score_truths(splats, [truth], start_scene=filled_ball(0.3, color), resolution=32)
    assert scores.iou > 0.85 and scores.iou_start == pytest.approx((0.33 / 0.55) ** 3, abs=0.05)
    assert scores.color_error < 1e-3


def test_a_shell_of_splats_counts_as_the_ball_that_it_shows(toys):
    """Splats placed on a surface are flat. A shell without its upper part can be looked into."""
    ball = toys.Ball(radius=0.55)
    splats = from_surface(toys.BallScene((ball,)), 2000, torch.Generator().manual_seed(0))
    (closed,) = score_truths(scene_of(splats, 1.0), [ball], resolution=32)
    assert closed.iou > 0.93
    below = splats["means"][:, 2] < 0.1
    (opened,) = score_truths(scene_of({k: v[below] for k, v in splats.items()}, 1.0), [ball], resolution=32)
    assert opened.iou < 0.3


def test_what_cameras_see_of_a_batch_equals_that_of_each(toys):
    """Against the balls in closed form; points outside the bounding ball are outside."""
    generator = torch.Generator().manual_seed(0)
    shells = [
        from_surface(toys.BallScene((toys.Ball(radius=radius),)), 2000, generator) for radius in (0.3, 0.6)
    ]
    batch = scene_of({k: torch.stack([shell[k] for shell in shells]) for k in shells[0]}, 1.0)
    batch = replace(batch, **{name: getattr(batch, name)[0] for name in NAMES})
    points = torch.rand(4000, 3, generator=generator) * 2.4 - 1.2
    inside = carved(batch, points)
    assert torch.equal(inside, torch.cat([carved(batch.select(p), points) for p in range(2)]))
    for row, radius in zip(inside, (0.3, 0.6), strict=True):
        distance = points.norm(dim=-1)
        assert row[distance < radius - 0.03].all() and not row[distance > radius + 0.03].any()


@dataclass
class UniformBall:
    """A `DensityScene`: one ball of density 5, red."""

    radius: float
    num_prompts: int = 1
    bounding_radius: float = 1.0

    def density(self, points):
        return 5.0 * (points.norm(dim=-1) < self.radius)

    def density_and_albedo(self, points):
        return self.density(points), points.new_tensor((0.5, 0.1, 0.4)).expand_as(points)

    def select(self, index):
        return self


def test_a_scene_of_densities_is_scored_by_its_inside(toys):
    truth = toys.Ball(radius=0.7, albedo=(0.9, 0.1, 0.1), marked=(0,))
    (scores,) = score_truths(UniformBall(0.5), [truth], start_scene=UniformBall(0.3))
    assert scores.iou == pytest.approx((0.5 / 0.7) ** 3, abs=0.01)
    assert scores.iou_start == pytest.approx((0.3 / 0.7) ** 3, abs=0.01)
    assert scores.color_error == pytest.approx((0.4 + 0.0 + 0.3) / 3, abs=0.02)  # the mark's color differs
    assert scores.mark_sides == (False, False, False, False)
