"""The solid of splats: a brute-force sum, and the shapes that they stand for."""

from __future__ import annotations

import pytest
import torch

from amortized.evaluation.metrics import iou
from amortized.evaluation.truth import grid_points, level_on
from amortized.splats import SplatSolid, as_field, colors_of, rotation_matrices
from amortized.types import Scene
from tests.rendering import scenes
from tests.rendering.splats import made
from tests.splats.made import filled_ball


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_density_and_color_equal_a_plain_sum(num_prompts: int):
    splats = made.shell(num_prompts, 80)
    solid, points = as_field(splats), 1.4 * (torch.rand(num_prompts, 500, 3).double() - 0.5)
    assert isinstance(solid, Scene) and solid.num_prompts == num_prompts
    sdf, albedo = solid.sdf_and_albedo(points)
    assert torch.equal(sdf, solid.sdf(points))
    for p in range(num_prompts):
        axes = rotation_matrices(splats.quaternions[p]) * splats.log_scales[p].exp()[:, None]
        offsets = points[p][:, None] - splats.means[p]
        inverse = torch.linalg.inv(axes @ axes.mT)
        power = torch.einsum("nki,kij,nkj->nk", offsets, inverse, offsets)
        weights = torch.sigmoid(splats.logits[p]) * torch.exp(-power / 2)
        torch.testing.assert_close(0.5 - sdf[p], weights.sum(1), rtol=0, atol=80e-4)
        dense = weights.sum(1) > 0.3
        color = (weights @ colors_of(splats.colors[p]) / weights.sum(1, keepdim=True)).clamp(0, 1)
        torch.testing.assert_close(albedo[p][dense], color[dense], rtol=0, atol=0.02)
        alone = solid.select(p)
        torch.testing.assert_close(alone.sdf(points[p : p + 1])[0], sdf[p], rtol=0, atol=1e-12)


def test_splats_that_fill_a_ball_have_its_volume():
    grid, ball = grid_points(32, 1.0), scenes.Balls(torch.tensor([0.53]))
    solid = SplatSolid(filled_ball(0.5, (0.5, 0.5, 0.5)))
    assert iou(level_on(solid, grid), level_on(ball, grid)) > 0.86


def test_other_scenes_stay():
    ball = scenes.Balls(torch.tensor([0.5]))
    assert as_field(ball) is ball
