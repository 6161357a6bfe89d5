"""Contiguous gradients for tiny-cuda-nn's PyTorch binding, with a stub that computes real values on a CPU.

The binding pads points to a multiple of 256 and slices its output. Without padding, the slice is the identity
and the gradient reaches the C++ code with its strides. That code assumes contiguous rows: for others, newer
versions raise and older ones misread memory.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from amortized.cameras import orbit
from amortized.encodings import HashGrid, HashGridConfig, hash_grid
from amortized.rendering import RendererConfig, render
from amortized.types import TextCondition
from generators.hyper_ingp import HyperINGPConfig

GRID = HashGridConfig(num_levels=4, log2_table_size=10, base_resolution=4, growth=1.7)


class StubEncoding(torch.nn.Module):
    """A `tinycudann.Encoding` of one grid."""

    grid: HashGrid
    sizes: list[int]  # number of points in each backward pass

    def __init__(self, dims: int, shape: dict, dtype: torch.dtype) -> None:
        super().__init__()
        self.params = torch.nn.Parameter(torch.zeros(self.grid.table.numel()))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        missing = -len(points) % 256
        padded = torch.nn.functional.pad(points, (0, 0, 0, missing)) if missing else points
        out = _Native.apply(self, padded.contiguous(), self.params.contiguous())
        return out[: len(points), : out.shape[1]]  # both slices are the identity without padding


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoding: StubEncoding, points: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        assert points.is_contiguous() and params.is_contiguous()
        assert points.dtype == params.dtype == torch.float32
        grid = encoding.grid
        with torch.enable_grad():
            table = params.detach().view_as(grid.table).requires_grad_()
            out = hash_grid._Lookup.apply(points, table, grid.levels)
        ctx.encoding, ctx.table, ctx.out = encoding, table, out
        return out.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        if not gradient.is_contiguous():
            raise RuntimeError(f"dL_doutput must be contiguous, got strides {gradient.stride()}")
        ctx.encoding.sizes.append(len(gradient))
        (table_grad,) = torch.autograd.grad(ctx.out, ctx.table, gradient)
        return None, None, table_grad.reshape(-1)


def gradient_of(generator: torch.nn.Module, num_prompts: int, points: int) -> torch.Tensor:
    """Return the table's gradient for a loss on the distances at `points` points of each prompt."""
    generator.zero_grad()
    random = torch.Generator().manual_seed(1)
    text = TextCondition(
        pooled=torch.randn(num_prompts, 8, generator=random),
        tokens=torch.zeros(num_prompts, 1, 8),
        mask=torch.ones(num_prompts, 1, dtype=torch.bool),
    )
    positions = torch.rand(num_prompts, points, 3, generator=random) - 0.5
    generator(text).sdf(positions).square().sum().backward()
    return generator.grid.table.grad.clone()


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
@pytest.mark.parametrize("points", [256, 300, 512])
@pytest.mark.parametrize("extra", [{}, {"include_position": True}, {"shared_width": 16}])
def test_gradients_are_contiguous(num_prompts, points, extra, monkeypatch):
    torch.manual_seed(0)
    generator = HyperINGPConfig(grid=GRID, hidden=(16,), **extra).build(8)
    torch.nn.init.normal_(generator.grid.table, std=0.1)
    expected = gradient_of(generator, num_prompts, points)
    monkeypatch.setattr(StubEncoding, "grid", generator.grid, raising=False)
    monkeypatch.setattr(StubEncoding, "sizes", [], raising=False)
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=StubEncoding))
    monkeypatch.setattr(HashGrid, "engine", "tiny-cuda-nn")
    torch.testing.assert_close(gradient_of(generator, num_prompts, points), expected)
    assert StubEncoding.sizes == [-(-num_prompts * points // 256) * 256]


def test_render_of_one_prompt(monkeypatch):
    """End to end: 64 rays of 16 samples, and 4 evaluations per normal."""
    torch.manual_seed(0)
    generator = HyperINGPConfig(grid=GRID, hidden=(16,)).build(8)
    text = TextCondition(
        pooled=torch.randn(1, 8), tokens=torch.zeros(1, 1, 8), mask=torch.ones(1, 1, dtype=torch.bool)
    )
    cameras = orbit(1, 1, elevation_deg=20, distance=1.2, fovy_deg=20)
    config = RendererConfig(lattice=8, num_coarse=16, num_fine=16, min_optical_depth=0.0)

    def gradient() -> torch.Tensor:
        generator.zero_grad()
        image = render(
            generator(text),
            cameras,
            8,
            8,
            config=config,
            background=torch.zeros(1, 1, 3),
            sharpness=30.0,
            training=True,
            want_normal=True,
        )
        (image.rgb.square().sum() + image.samples.gradient.square().sum()).backward()
        return generator.grid.table.grad.clone()

    expected = gradient()
    monkeypatch.setattr(StubEncoding, "grid", generator.grid, raising=False)
    monkeypatch.setattr(StubEncoding, "sizes", [], raising=False)
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=StubEncoding))
    monkeypatch.setattr(HashGrid, "engine", "tiny-cuda-nn")
    torch.testing.assert_close(gradient(), expected)
    assert sorted(StubEncoding.sizes) == [4 * 64, 64 * 16]
