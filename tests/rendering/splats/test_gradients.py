"""The hand-written backward pass against finite differences and against autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amortized.rendering.splats.compositing import composite
from amortized.rendering.splats.pairs import Pairs, boxes_of, pairs_in, starts_of, transmittances_of
from amortized.rendering.splats.projection import project, values_of
from tests.rendering.splats import made

SIZE = 12


@pytest.mark.parametrize("antialias", [True, False])
def test_gradients_equal_finite_differences(antialias: bool):
    scene, cameras = made.needing_grad(made.shell(2, 4)), made.cameras_for(2, 2)
    mix = torch.randn(3, 2, 2, 6, 6, 8).double()

    def run(*tensors: Tensor) -> Tensor:
        moved = made.with_tensors(scene, *tensors)
        image = made.images(moved, cameras, 6, antialias=antialias, exact=True, want_normal=True)
        return (mix * made.stacked(image)).flatten(1).sum(1)

    assert torch.autograd.gradcheck(run, made.tensors_of(scene), eps=1e-6, atol=1e-6, rtol=1e-4)


def by_autograd(means: Tensor, conics: Tensor, opacities: Tensor, values: Tensor, pairs: Pairs) -> Tensor:
    """Composite the same pairs pixel by pixel, with every step under autograd."""
    rows = []
    for pixel in range(len(pairs.starts) - 1):
        splats = pairs.splats[pairs.starts[pixel] : pairs.starts[pixel + 1]].long()
        row, column = pixel // SIZE % SIZE, pixel % SIZE
        dx, dy = (means[splats] - torch.tensor([column + 0.5, row + 0.5]).double()).unbind(-1)
        xx, xy, yy = conics[splats].unbind(-1)
        alphas = (opacities[splats] * torch.exp(-(xx * dx**2 + yy * dy**2) / 2 - xy * dx * dy)).clamp(
            max=0.999
        )
        light = torch.cumprod(torch.cat([alphas.new_ones(1), 1 - alphas]), dim=0)[:-1]
        table = torch.cat([values[splats], torch.ones_like(xx)[:, None]], dim=-1)
        rows.append(((alphas * light)[:, None] * table).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("num_splats", [1, 40, 300])
@pytest.mark.parametrize("opaque", [False, True])
def test_the_backward_pass_equals_autograd(num_splats: int, opaque: bool):
    """With the cut-offs, and for `opaque` with capped coverage too."""
    scene, cameras = made.shell(2, num_splats), made.cameras_for(2, 1)
    if opaque:
        wide = torch.full_like(scene.log_scales, 1.2)
        scene = replace(scene, logits=scene.logits + 9, log_scales=wide)
    projection = project(scene, cameras, SIZE, SIZE, antialias=not opaque)
    values = values_of(scene, cameras, want_normal=True)
    flat = [
        tensor.detach().reshape(2 * num_splats, *tensor.shape[3:]).requires_grad_()
        for tensor in (projection.means, projection.conics, projection.opacities, values)
    ]
    pairs = pairs_in((0, 2 * SIZE), boxes_of(projection, SIZE, SIZE), projection, SIZE)
    assert len(pairs.splats) and (pairs.alphas == 0.999).any() == opaque
    own = composite(*flat, pairs, first_row=0, height=SIZE, width=SIZE)
    twin = by_autograd(*flat, pairs)
    torch.testing.assert_close(own, twin, rtol=0, atol=1e-11)  # one running sum over all pixels
    seed = torch.randn_like(own)
    for a, b in zip(torch.autograd.grad(own, flat, seed), torch.autograd.grad(twin, flat, seed), strict=True):
        assert (a - b).norm() <= (1e-10 if opaque else 1e-12) * b.norm()  # 1 / (1 - 0.999) amplifies rounding


def test_float32_gradients_are_accurate():
    scene, cameras = made.needing_grad(made.shell(1, 400)), made.cameras_for(1, 2)
    single = made.with_tensors(scene, *(tensor.detach().float() for tensor in made.tensors_of(scene)))
    single = made.needing_grad(single)
    exact = made.images(scene, cameras, 32)
    rounded = made.images(single, made.cameras_for(1, 2, torch.float32), 32)
    assert rounded.rgb.dtype == torch.float32
    assert (rounded.rgb - exact.rgb).abs().mean() < 1e-5
    for image in (exact, rounded):
        image.rgb.square().sum().backward()
    for a, b in zip(made.tensors_of(single), made.tensors_of(scene), strict=True):
        assert (a.grad - b.grad).norm() < 5e-3 * b.grad.norm()


def test_transmittances_are_exact_behind_a_million_pairs():
    """In float32, a running sum over all pixels would have lost the last ones' digits."""
    alphas = 0.05 * torch.rand(10_000, 100)
    pixels = torch.arange(10_000, dtype=torch.int32).repeat_interleave(100)
    actual = transmittances_of(alphas.flatten(), pixels, starts_of(pixels, 10_000)).view_as(alphas)
    exact = torch.cumprod(1 - alphas.double(), dim=1) / (1 - alphas.double())
    torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=0)


def test_a_second_derivative_is_refused():
    scene, cameras = made.needing_grad(made.shell(1, 5)), made.cameras_for(1, 1)
    image = made.images(scene, cameras, 8)
    (grad,) = torch.autograd.grad(image.rgb.square().sum(), scene.means, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
