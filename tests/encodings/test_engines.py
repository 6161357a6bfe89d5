"""Hash grid engines: how they are selected, and Triton's arithmetic without a GPU."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from amortized.config import build_config
from amortized.encodings import HashGrid, HashGridConfig, engines

CUDA = torch.device("cuda", 0)


def set_installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Pretend that exactly these packages are installed."""
    monkeypatch.setattr(engines, "installed", lambda name: engines.PACKAGES[name] in packages)


def test_auto_selects_fastest_installed(monkeypatch):
    small = HashGrid(HashGridConfig(num_levels=1, log2_table_size=8))
    assert engines.engine_on(torch.device("cpu"), "auto", 2) == "torch" == small.engine
    for packages, expected in (
        (("tinycudann", "triton"), "tiny-cuda-nn"),
        (("triton",), "triton"),
        ((), "torch"),
    ):
        set_installed(monkeypatch, *packages)
        assert engines.engine_on(CUDA, "auto", 2) == expected
    set_installed(monkeypatch, "tinycudann", "triton")
    assert engines.engine_on(CUDA, "triton", 2) == "triton"
    assert engines.engine_on(CUDA, "torch", 2) == "torch"
    assert engines.engine_on(CUDA, "auto", 3) == "torch"


def test_engines_that_cannot_run_raise(monkeypatch):
    set_installed(monkeypatch)
    with pytest.raises(
        ValueError, match="^engine tiny-cuda-nn is not installed: pip install .* or set engine=auto"
    ):
        HashGridConfig(engine="tiny-cuda-nn")
    with pytest.raises(ValueError, match="must be one of auto, torch, tiny-cuda-nn, triton, got 'cuda'"):
        build_config(HashGridConfig, {"engine": "cuda"})
    set_installed(monkeypatch, "triton")
    with pytest.raises(ValueError, match="needs features_per_level of 1, 2, 4 or 8, got 3"):
        HashGridConfig(engine="triton", features_per_level=3)
    grid = HashGrid(HashGridConfig(engine="triton", num_levels=1, log2_table_size=8))
    with pytest.raises(ValueError, match="triton needs a CUDA device, but the grid is on cpu"):
        grid(torch.rand(4, 3))


def test_tiny_cuda_nn_uses_our_table(monkeypatch):
    """With a stub of its interface: the shape it is given, the table layout, and a different table size."""
    calls = []

    class Encoding(torch.nn.Module):
        def __init__(self, num_dims: int, shape: dict, dtype: torch.dtype) -> None:
            super().__init__()
            calls.append((num_dims, shape, dtype))
            self.params = torch.nn.Parameter(torch.zeros(Encoding.size))

        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return points[:, :1] * self.params[: 2 * 4].sum() + torch.zeros(1, 4)

    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    config = HashGridConfig(num_levels=2, log2_table_size=8, base_resolution=3, growth=2.0)
    grid = HashGrid(config)
    monkeypatch.setattr(HashGrid, "engine", "tiny-cuda-nn")
    Encoding.size = grid.table.numel()
    points = torch.rand(5, 3)
    features = grid(points)
    torch.testing.assert_close(features, points[:, :1] * grid.table[:4].sum() + torch.zeros(1, 4))
    features.sum().backward()
    assert grid.table.grad[:4].abs().min() > 0 and grid.table.grad[4:].abs().max() == 0
    assert [name for name, _ in grid.named_parameters()] == ["table"] and list(grid.state_dict()) == ["table"]
    ((num_dims, shape, dtype),) = calls
    assert num_dims == 3 and dtype == torch.float32 and shape["otype"] == "Grid" and shape["type"] == "Hash"
    assert (shape["n_levels"], shape["n_features_per_level"], shape["log2_hashmap_size"]) == (2, 2, 8)
    assert (shape["base_resolution"], shape["per_level_scale"]) == (3, 2.0)
    Encoding.size += 8
    with pytest.raises(ValueError, match=f"in {Encoding.size} numbers instead of {grid.table.numel()}"):
        HashGrid(config)(points)


INTERPRETED = """
import torch
from amortized.encodings import HashGrid, HashGridConfig
from amortized.encodings.triton_grid import TritonLookup

torch.manual_seed(0)
for features in (1, 2, 4):
    grid = HashGrid(HashGridConfig(num_levels=4, features_per_level=features, log2_table_size=10,
                                   base_resolution=5, growth=1.9))
    assert [level.dense for level in grid.levels] == [True, True, False, False]
    torch.nn.init.normal_(grid.table)
    points = torch.cat([torch.rand(298, 3), torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 1, 0.5]])])
    expected = grid(points)
    actual = TritonLookup.apply(points, grid.table, grid.scales, grid.sizes)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    seed = torch.randn_like(expected)
    (a,) = torch.autograd.grad(expected, grid.table, seed)
    (b,) = torch.autograd.grad(actual, grid.table, seed)
    torch.testing.assert_close(b, a, rtol=0, atol=2e-5)
    empty = TritonLookup.apply(points[:0], grid.table, grid.scales, grid.sizes)
    assert empty.shape == (0, 4 * features)
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from amortized.encodings import triton_grid

kinds = {"num_points": "i32", "sizes": "*i64", "F": "constexpr", "SIZE": "constexpr"}
for kernel in (triton_grid._forward, triton_grid._backward):
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs={"F": 2, "SIZE": triton_grid.BLOCK})
    for capability in (80, 90):
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        ptx = built.asm["ptx"]
        is_backward = kernel is triton_grid._backward
        # Triton 3.6 emits `atom` without a result, which the assembler turns into a reduction as well.
        assert ("red.global" in ptx or "atom.global" in ptx) == is_backward and "acq_rel" not in ptx, kernel
        assert "rem.u32" not in ptx and "rem.u64" not in ptx, kernel
"""


@pytest.mark.parametrize(("script", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_triton_kernels(script: str, interpret: str, tmp_path):
    """They equal PyTorch's lookup in Triton's interpreter, and compile for A100 and H100."""
    pytest.importorskip("triton")
    changes = {
        "TRITON_INTERPRET": interpret,
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-2000:]
