"""Regularizers against closed forms."""

import math

import numpy as np
import pytest
import torch

from amortized.cameras import camera_rays, orbit, take_cameras
from amortized.training import regularizers
from amortized.training.losses import LossConfig, regularization
from amortized.types import RaySamples, Render

CAMERAS = orbit(1, 2, elevation_deg=20, distance=3, fovy_deg=40)


def images(*values: float) -> torch.Tensor:
    """Opacities [P, V, H, W] of one prompt per value: 2 uniform views of 3 x 4 pixels."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 2, 3, 4)


def rays(valid: torch.Tensor, **fields: torch.Tensor) -> RaySamples:
    """K rays per prompt with two samples each, by default at distance 1 with weight 0.5, looking down -z."""
    ones = torch.ones(*valid.shape, 2, dtype=torch.float64)
    forward = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand(*valid.shape, 3)
    defaults = {"sdf": ones, "weights": 0.5 * ones, "t_positions": ones, "directions": forward}
    return RaySamples(valid=valid, **{**defaults, **fields})


def test_sparsity():
    value = regularizers.sparsity(images(0.0, 1.0, 0.3))
    assert value.tolist() == pytest.approx([0.1, math.sqrt(1.01), math.sqrt(0.1)])


def test_opaque():
    value = regularizers.opaque(images(0.5, 0.2, 0.0, 1.0))
    entropy = [-a * math.log(a) - (1 - a) * math.log(1 - a) for a in (0.5, 0.2, 0.001, 0.999)]
    assert value.tolist() == pytest.approx(entropy)
    assert value[0].item() == pytest.approx(math.log(2))


def test_opaque_is_finite_with_zero_gradient_at_0_and_1_in_float32():
    opacity = torch.tensor([0.0, 1.0, 1.0 + 1e-7])[:, None, None, None].requires_grad_()
    value = regularizers.opaque(opacity)
    value.sum().backward()
    assert value.isfinite().all() and torch.all(opacity.grad == 0)


def test_eikonal_is_the_mean_over_valid_rays():
    gradient = torch.tensor([[[0.0, 0.6, 0.8], [2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]]])
    all_valid = torch.ones(2, 2, dtype=torch.bool)
    value = regularizers.eikonal(rays(all_valid, gradient=gradient))
    assert value.tolist() == pytest.approx([(0 + 1) / 2, (1 + 16) / 2])
    some = torch.tensor([[False, True], [False, False]])
    assert regularizers.eikonal(rays(some, gradient=gradient)).tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("name", ["gradient", "gradients"])
def test_eikonal_has_a_finite_gradient_at_zero(name: str):
    gradient = torch.zeros(1, 2, *[2] * (name == "gradients"), 3, requires_grad=True)
    regularizers.eikonal(rays(torch.ones(1, 2, dtype=torch.bool), **{name: gradient})).sum().backward()
    assert gradient.grad.isfinite().all()


def test_eikonal_of_samples_asks_for_their_gradients_instead_of_the_surface():
    config = LossConfig(eikonal=(0.0, 100.0, 0.0, 0.5), eikonal_samples=True)
    assert config.need_gradients(0.2) and not config.need_normals(0.2) and not config.need_gradients(0.6)
    surface = LossConfig(eikonal=1.0)
    assert surface.need_normals(0.2) and not surface.need_gradients(0.2)


def test_orient_penalizes_normals_that_face_away_weighted_by_opacity():
    """Rays look down -z. Normals face the camera, away from it, and at 60 degrees from away."""
    slant = [math.sqrt(3) / 2, 0.0, -0.5]
    gradient = torch.tensor([[[0, 0, 2.0], [0, 0, -3.0]], [slant, slant]], dtype=torch.float64)
    weights = torch.tensor([[[0.5, 0.5], [0.25, 0.5]], [[0.5, 0.5], [0.1, 0.1]]], dtype=torch.float64)
    valid = torch.tensor([[True, True], [True, False]])
    value = regularizers.orient(rays(valid, gradient=gradient, weights=weights))
    assert value.tolist() == pytest.approx([(0 + 0.75) / 2, 0.25])


def test_z_variance_is_the_variance_of_the_samples_distance():
    t = torch.tensor([[[1.0, 3.0], [1.0, 9.0]], [[2.0, 2.0], [1.0, 2.0]]], dtype=torch.float64)
    weights = torch.tensor([[[0.6, 0.2], [0.2, 0.2]], [[0.5, 0.5], [0.3, 0.6]]], dtype=torch.float64)
    value = regularizers.z_variance(rays(torch.ones(2, 2, dtype=torch.bool), t_positions=t, weights=weights))
    # Means 1.5 and 5/3; the second ray of the first prompt has too little opacity to count.
    first = 0.75 * 0.25 + 0.25 * 2.25
    second = (0 + (1 / 3 * 4 / 9 + 2 / 3 * 1 / 9)) / 2
    assert value.tolist() == pytest.approx([first, second])
    empty = rays(torch.ones(1, 2, dtype=torch.bool), weights=torch.zeros(1, 2, 2).double())
    assert regularizers.z_variance(empty).tolist() == [0.0]


def test_floor_and_cap_apply_to_each_image_not_to_the_mean():
    opacity = images(0.02, 0.5).clone()
    opacity[0, 1] = 0.9  # the second view of the first prompt is nearly opaque
    assert regularizers.opacity_floor(opacity, 0.08).tolist() == pytest.approx([0.06 / 2, 0.0])
    assert regularizers.opacity_cap(opacity, 0.4).tolist() == pytest.approx([0.5 / 2, 0.1])


def test_inside_hinge():
    sdf = torch.tensor([[[0.3, 0.2]], [[-0.05, 0.4]], [[-0.5, 0.1]]], requires_grad=True)
    value = regularizers.inside_hinge(rays(torch.ones(3, 1, dtype=torch.bool), sdf=sdf))
    assert value.tolist() == pytest.approx([0.3, 0.05, 0.0])
    value.sum().backward()
    assert sdf.grad.tolist() == [[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0]]]


@pytest.mark.parametrize("term", ["eikonal", "orient", "z_variance", "inside"])
def test_terms_of_the_field_are_refused_for_splats(term: str):
    opacity = images(0.5)
    render = Render(rgb=opacity[..., None].expand(*opacity.shape, 3), opacity=opacity, depth=opacity)
    with pytest.raises(ValueError, match=f"losses.{term} reads .* splats do not have: set it to 0"):
        regularization(render, CAMERAS, LossConfig(**{term: 1.0}), 0.5)
    terms = regularization(render, CAMERAS, LossConfig(sparsity=2.0, opaque=1.0), 0.5)
    assert terms["sparsity"].item() == pytest.approx(2 * math.sqrt(0.26)) and set(terms) == {
        "sparsity",
        "opaque",
    }


@pytest.mark.parametrize("term", [regularizers.eikonal, regularizers.inside_hinge])
def test_terms_of_distances_refuse_a_scene_of_densities(term):
    samples = rays(torch.ones(1, 2, dtype=torch.bool), sdf=None, gradient=torch.ones(1, 2, 3))
    assert regularizers.orient(samples).isfinite().all()
    with pytest.raises(ValueError, match="need signed distances"):
        term(samples)


def sphere(cameras, size: int, sign: float = 1.0) -> Render:
    """The exact normals of a ball of radius 0.6, or of the hollow half that its light shines into."""
    rays = camera_rays(cameras, size, size)
    shape = (*cameras.fovy_deg.shape, size, size)
    along = -(rays.origins * rays.directions).sum(-1, keepdim=True)
    half = 0.36 - (rays.origins + along * rays.directions).square().sum(-1, keepdim=True)
    hit = half > 0
    points = rays.origins + (along - sign * half.clamp(min=0).sqrt()) * rays.directions
    normal = torch.where(hit, sign * points / 0.6, 0.0).view(*shape, 3)
    opacity = hit.to(points.dtype).view(shape)
    return Render(rgb=normal, opacity=opacity, depth=opacity, normal=normal)


def convex_by_hand(render: Render, cameras) -> list[float]:
    """Loops in numpy. For sizes of 16 n, bilinear reduction is the mean of the middle pixels of each part."""
    values = []
    for p, view in np.ndindex(*render.opacity.shape[:2]):
        weighted = (render.normal[p, view] * render.opacity[p, view, ..., None]).numpy()
        n, total = len(weighted) // 8, {"rows": [], "columns": []}
        middle = [slice(n * k + n // 2 - 1, n * k + n // 2 + 1) for k in range(8)]
        small = [[weighted[rows, columns].mean((0, 1)) for columns in middle] for rows in middle]
        right, up = cameras.c2w[p, view, :3, 0].numpy(), cameras.c2w[p, view, :3, 1].numpy()
        for k in range(8):
            for m in range(7):
                total["rows"].append(np.cross(small[k][m], small[k][m + 1]) @ up)
                total["columns"].append(np.cross(small[m][k], small[m + 1][k]) @ right)
        values.append(-np.mean(total["rows"]) - np.mean(total["columns"]))
    return np.reshape(values, render.opacity.shape[:2]).mean(1).tolist()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_convex_is_the_mean_sine_between_neighboring_normals(size: int):
    """Equal from all sides for a ball, with the opposite sign for a hollow one."""
    cameras = orbit(2, 3, elevation_deg=20, distance=3, fovy_deg=30)
    cameras = type(cameras)(**{name: value.double() for name, value in vars(cameras).items()})
    ball, hollow = sphere(cameras, size), sphere(cameras, size, -1.0)
    value = regularizers.convex(ball, cameras)
    assert value.tolist() == pytest.approx(convex_by_hand(ball, cameras))
    assert (value < -0.1).all() and (regularizers.convex(hollow, cameras) > 0.1).all()
    for view in range(3):
        one = take_cameras(cameras, torch.tensor([view]), 1)
        assert regularizers.convex(sphere(one, size), one).item() == pytest.approx(value[0].item(), rel=1e-6)


def test_tv_is_twice_the_mean_squared_difference_of_neighbors():
    rgb = torch.rand(2, 3, 4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = regularizers.tv(rgb)
    for p in range(2):
        image = rgb[p].numpy()
        rows = [(image[v, y + 1, x, c] - image[v, y, x, c]) ** 2
                for v, y, x, c in np.ndindex(3, 3, 5, 3)]  # fmt: skip
        columns = [(image[v, y, x + 1, c] - image[v, y, x, c]) ** 2
                   for v, y, x, c in np.ndindex(3, 4, 4, 3)]  # fmt: skip
        assert value[p].item() == pytest.approx(2 * (np.mean(rows) + np.mean(columns)))
    assert regularizers.tv(torch.full((1, 1, 4, 4, 3), 0.3)).item() == 0


def test_new_terms_are_weighted_and_off_by_default():
    cameras = orbit(1, 2, elevation_deg=20, distance=3, fovy_deg=30)
    render = sphere(cameras, 16)
    config = LossConfig(sparsity=0.0, convex=(0.0, 1.0, 0.1, 0.4), tv=3.0)
    terms = regularization(render, cameras, config, 0.2)
    assert terms["convex"].item() == pytest.approx(0.55 * regularizers.convex(render, cameras).item())
    assert terms["tv"].item() == pytest.approx(3 * regularizers.tv(render.rgb).item())
    assert config.need_normals(0.2) and not LossConfig().need_normals(0.2)
    assert set(regularization(render, cameras, LossConfig(), 0.5)) == {"sparsity"}
