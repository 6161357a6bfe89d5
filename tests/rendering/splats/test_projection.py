"""Projected ellipses against analytic ones and against a float64 calculation in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from amortized.rendering.splats.projection import project
from amortized.splats import quaternions_from_z, rotation_matrices
from tests.rendering import scenes
from tests.rendering.splats import made


@pytest.mark.parametrize("distance", [1.5, 4.0])
@pytest.mark.parametrize("radius", [0.01, 0.2])
def test_a_ball_on_the_axis_is_a_circle(distance: float, radius: float):
    scene = replace(
        made.shell(1, 1),
        means=torch.zeros(1, 1, 3).double(),
        log_scales=torch.full((1, 1, 3), np.log(radius)).double(),
    )
    size, camera = 48, scenes.front_camera(distance)
    projected = project(scene, camera, size, size, antialias=True)
    sigma = radius * (size / 2) / np.tan(np.radians(20)) / distance
    torch.testing.assert_close(projected.means[0, 0, 0], torch.tensor([24.0, 24.0]).double())
    variance = sigma**2 + 0.3
    torch.testing.assert_close(
        projected.conics[0, 0, 0], torch.tensor([1 / variance, 0.0, 1 / variance]).double()
    )
    expected = torch.sigmoid(scene.logits[0, 0]) * sigma**2 / variance
    torch.testing.assert_close(projected.opacities[0, 0, 0], expected)
    torch.testing.assert_close(projected.radii.item(), 3 * np.sqrt(variance))
    assert projected.depths.item() == pytest.approx(distance)


@pytest.mark.parametrize("antialias", [True, False])
def test_ellipses_equal_a_numpy_projection(antialias: bool):
    """The derivative of the projection is taken numerically here."""
    scene, cameras, height, width = made.shell(2, 20), made.cameras_for(2, 3), 40, 56
    projected = project(scene, cameras, height, width, antialias=antialias)
    for p, v, n in np.ndindex(2, 3, 20):
        c2w = cameras.c2w[p, v].numpy()
        focal = height / 2 / np.tan(np.radians(cameras.fovy_deg[p, v].item()) / 2)

        def image(point: np.ndarray, c2w: np.ndarray = c2w, focal: float = focal) -> np.ndarray:
            x, y, z = c2w[:3, :3].T @ (point - c2w[:3, 3])
            return np.array([width / 2 + focal * x / -z, height / 2 - focal * y / -z])

        mean, step = scene.means[p, n].numpy(), 1e-6
        jacobian = np.stack(
            [(image(mean + d) - image(mean - d)) / (2 * step) for d in step * np.eye(3)], axis=1
        )
        axes = _matrix(scene.quaternions[p, n].numpy()) * np.exp(scene.log_scales[p, n].numpy())
        exact = jacobian @ axes @ axes.T @ jacobian.T
        blurred = exact + 0.3 * np.eye(2)
        opacity = 1 / (1 + np.exp(-scene.logits[p, n].item()))
        if antialias:
            opacity *= np.sqrt(np.linalg.det(exact) / np.linalg.det(blurred))
        np.testing.assert_allclose(projected.means[p, v, n], image(mean), rtol=1e-10)
        xx, xy, yy = projected.conics[p, v, n].tolist()
        np.testing.assert_allclose(
            np.array([[xx, xy], [xy, yy]]), np.linalg.inv(blurred), rtol=1e-5, atol=1e-9
        )
        np.testing.assert_allclose(projected.deviations[p, v, n] ** 2, np.diag(blurred), rtol=1e-6)
        longest = np.sqrt(np.linalg.eigvalsh(blurred)[-1])
        np.testing.assert_allclose(projected.radii[p, v, n], 3 * longest, rtol=1e-6)
        np.testing.assert_allclose(projected.opacities[p, v, n], opacity, rtol=1e-6)


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotate the unit vectors by q v q*."""

    def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        vector = a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
        return np.array([a[0] * b[0] - a[1:] @ b[1:], *vector])

    q = quaternion / np.linalg.norm(quaternion)
    conjugate = q * [1, -1, -1, -1]
    return np.stack([times(times(q, np.array([0, *axis])), conjugate)[1:] for axis in np.eye(3)], axis=1)


def test_splats_behind_the_camera_and_beyond_the_border_do_not_explode():
    scene, camera = made.shell(1, 7), scenes.front_camera(1.0)
    beyond = [[0.5, 9.0, 0.0], [0.5, -9.0, 0.0], [0.5, 0.0, 9.0], [0.5, 0.0, -9.0]]
    means = torch.tensor([[*beyond, [0.9999, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.3, 0.0]]]).double()
    scene = replace(scene, means=means, log_scales=torch.full((1, 7, 3), -1.5).double())
    scene = made.needing_grad(scene)
    # The slope of the first four is limited to 1.3 of the border's. Unlimited, they would reach the image.
    deviations = project(scene, camera, 32, 32, antialias=True).deviations
    assert deviations[0, 0, :4].max() < 30
    image = made.images(scene, camera, 32)
    assert not image.opacity.any()  # centers nearer than 0.01, or behind, are dropped
    image.rgb.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in made.tensors_of(scene))


def test_a_flat_and_a_line_splat_have_finite_gradients():
    scene = made.shell(1, 2)
    log_scales = torch.tensor([[[-3.0, -3.0, -200.0], [-3.0, -200.0, -200.0]]]).double()
    scene = made.needing_grad(replace(scene, log_scales=log_scales))
    image = made.images(scene, scenes.front_camera(), 16)
    image.rgb.square().sum().backward()
    assert image.rgb.isfinite().all() and all(t.grad.isfinite().all() for t in made.tensors_of(scene))


def test_quaternions_turn_z_onto_the_normal():
    normals = torch.nn.functional.normalize(torch.randn(500, 3).double(), dim=-1)
    normals = torch.cat([normals, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]).double()])
    torch.testing.assert_close(rotation_matrices(quaternions_from_z(normals))[..., 2], normals)
