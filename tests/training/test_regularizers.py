"""Regularizers against closed forms."""

import math

import pytest
import torch

from amortized.training import regularizers
from amortized.training.losses import LossConfig, regularization
from amortized.types import RaySamples, Render


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


def test_eikonal_has_a_finite_gradient_at_zero():
    gradient = torch.zeros(1, 2, 3, requires_grad=True)
    regularizers.eikonal(rays(torch.ones(1, 2, dtype=torch.bool), gradient=gradient)).sum().backward()
    assert gradient.grad.isfinite().all()


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
        regularization(render, LossConfig(**{term: 1.0}), 0.5)
    terms = regularization(render, LossConfig(sparsity=2.0, opaque=1.0), 0.5)
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
