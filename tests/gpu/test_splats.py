"""Splats on a GPU: PyTorch's images equal the CPU's, and gsplat's equal PyTorch's, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amortized.rendering.splats.engines import why_no_gsplat
from amortized.transfer import to_device
from amortized.types import ScreenStatistics, SplatScene
from tests.rendering.splats import made

pytestmark = pytest.mark.gpu


def single(scene: SplatScene, device: torch.device) -> SplatScene:
    tensors = (tensor.float().to(device) for tensor in made.tensors_of(scene))
    return made.needing_grad(made.with_tensors(scene, *tensors))


def assert_equal(one: torch.Tensor, other: torch.Tensor, a: SplatScene, b: SplatScene) -> None:
    """Images to 1e-3 but for a few pixels, at whose cut-offs rounding decides; gradients to 1 %."""
    difference = (one.detach().cpu() - other.detach().cpu()).abs()
    assert difference.mean() < 2e-4 and (difference > 5e-3).float().mean() < 2e-3
    for image in (one, other):
        image[..., :3].square().sum().backward()
    for x, y in zip(made.tensors_of(a), made.tensors_of(b), strict=True):
        assert x.grad is not None and y.grad is not None
        assert (x.grad.cpu() - y.grad.cpu()).norm() < 0.01 * y.grad.norm().cpu()


@pytest.mark.parametrize("antialias", [True, False])
def test_torch_gives_the_images_of_the_cpu(antialias: bool, device: torch.device):
    scene, cameras = made.shell(2, 500), made.cameras_for(2, 3, torch.float32)
    here, there = single(scene, torch.device("cpu")), single(scene, device)
    settings = {"antialias": antialias, "want_normal": True}
    expected = made.stacked(made.images(here, cameras, (48, 40), **settings))
    background = torch.full((2, 3, 3), 0.25, device=device)
    actual = made.images(
        there, to_device(cameras, device), (48, 40), engine="torch", background=background, **settings
    )
    assert_equal(made.stacked(actual), expected, there, here)


@pytest.mark.parametrize("want_normal", [True, False])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("num_prompts", "num_views"), [(1, 1), (2, 3)])
def test_gsplat_gives_the_images_of_torch(
    num_prompts: int, num_views: int, antialias: bool, want_normal: bool, device: torch.device
):
    if device.type != "cuda" or why_no_gsplat():
        pytest.skip(why_no_gsplat() or "gsplat needs a CUDA device")
    scene = made.shell(num_prompts, 500)
    cameras = to_device(made.cameras_for(num_prompts, num_views, torch.float32), device)
    background = torch.full((num_prompts, num_views, 3), 0.25, device=device)
    images, splats, statistics = [], [], []
    for engine in ("torch", "gsplat"):
        zeros = [torch.zeros(num_prompts, 500, device=device) for _ in range(3)]
        statistics.append(ScreenStatistics(gradient=zeros[0], visits=zeros[1], radius=zeros[2]))
        splats.append(replace(single(scene, device), statistics=statistics[-1]))
        image = made.images(
            splats[-1],
            cameras,
            (48, 40),
            engine=engine,
            background=background,
            antialias=antialias,
            want_normal=want_normal,
        )
        images.append(made.stacked(image))
    assert_equal(images[1], images[0], splats[1], splats[0])
    torch.testing.assert_close(statistics[1].visits, statistics[0].visits)
    torch.testing.assert_close(statistics[1].gradient, statistics[0].gradient, rtol=0.05, atol=1e-3)
