"""Regularizers on inputs whose value is known in closed form."""

import math

import pytest
import torch

from amortized.training import regularizers


def images(*values: float) -> torch.Tensor:
    """One prompt per value, 2 plain views of 3 x 4 pixels."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 2, 3, 4)


def test_sparsity():
    got = regularizers.sparsity(images(0.0, 1.0, 0.3))
    assert got.tolist() == pytest.approx([0.1, math.sqrt(1.01), math.sqrt(0.1)])


def test_opaque():
    got = regularizers.opaque(images(0.5, 0.2, 0.0, 1.0))
    entropy = [-a * math.log(a) - (1 - a) * math.log(1 - a) for a in (0.5, 0.2, 0.001, 0.999)]
    assert got.tolist() == pytest.approx(entropy)
    assert got[0].item() == pytest.approx(math.log(2))


def test_opaque_is_finite_and_flat_at_the_ends_in_float32():
    opacity = torch.tensor([0.0, 1.0, 1.0 + 1e-7])[:, None, None, None].requires_grad_()
    value = regularizers.opaque(opacity)
    value.sum().backward()
    assert value.isfinite().all() and torch.all(opacity.grad == 0)


def test_eikonal_is_the_mean_over_the_rays_that_are_seen():
    gradient = torch.tensor([[[0.0, 0.6, 0.8], [2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]]])
    all_seen = torch.ones(2, 2, dtype=torch.bool)
    assert regularizers.eikonal(gradient, all_seen).tolist() == pytest.approx([(0 + 1) / 2, (1 + 16) / 2])
    some = torch.tensor([[False, True], [False, False]])
    assert regularizers.eikonal(gradient, some).tolist() == pytest.approx([1.0, 0.0])


def test_eikonal_has_a_finite_gradient_at_zero():
    gradient = torch.zeros(1, 2, 3, requires_grad=True)
    regularizers.eikonal(gradient, torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert gradient.grad.isfinite().all()


def test_floor_and_cap_look_at_images_not_at_their_mean():
    opacity = images(0.02, 0.5).clone()
    opacity[0, 1] = 0.9  # the second view of the first prompt is full
    assert regularizers.opacity_floor(opacity, 0.08).tolist() == pytest.approx([0.06 / 2, 0.0])
    assert regularizers.opacity_cap(opacity, 0.4).tolist() == pytest.approx([0.5 / 2, 0.1])


def test_inside_hinge():
    sdf = torch.tensor([[[0.3, 0.2]], [[-0.05, 0.4]], [[-0.5, 0.1]]], requires_grad=True)
    value = regularizers.inside_hinge(sdf)
    assert value.tolist() == pytest.approx([0.3, 0.05, 0.0])
    value.sum().backward()
    assert sdf.grad.tolist() == [[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0]]]
