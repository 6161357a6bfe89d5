"""The implementations of the hash grid lookup: PyTorch on any device, tiny-cuda-nn or Triton on a GPU.

All use the same table, so checkpoints are interchangeable.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Engine = Literal["auto", "torch", "tiny-cuda-nn", "triton"]
PACKAGES = {"tiny-cuda-nn": "tinycudann", "triton": "triton"}
GPU_FEATURES = (1, 2, 4, 8)  # features per level that the GPU engines support
INSTALL = {
    # Its build imports torch, which an isolated build lacks.
    "tiny-cuda-nn": "pip install --no-build-isolation "
    "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch",
    "triton": "pip install triton",
}


@cache
def installed(name: str) -> bool:
    """Return whether the package of a GPU engine is installed, without importing it."""
    return find_spec(PACKAGES[name]) is not None


def check_engine(name: str, features_per_level: int) -> None:
    """Raise ValueError if the engine is not installed or does not support `features_per_level`."""
    if name in PACKAGES and not installed(name):
        raise ValueError(f"engine {name} is not installed: {INSTALL[name]}, or set engine=auto")
    if name in PACKAGES and features_per_level not in GPU_FEATURES:
        raise ValueError(
            f"engine {name} needs features_per_level of 1, 2, 4 or 8, got {features_per_level}; "
            "engine=torch supports any number"
        )


def engine_on(device: torch.device, name: str, features_per_level: int) -> str:
    """Resolve "auto" to the fastest engine on a device. Raises ValueError if `name` cannot run there."""
    if device.type != "cuda":
        if name in PACKAGES:
            raise ValueError(
                f"hash grid engine {name} needs a CUDA device, but the grid is on {device}: "
                "set engine=auto, which uses the same weights"
            )
        return "torch"
    if name != "auto":
        return name
    if features_per_level not in GPU_FEATURES:
        return "torch"
    return next((package for package in PACKAGES if installed(package)), "torch")


def tiny_cuda_nn_encoding(settings: dict[str, int | float], table: Tensor) -> Any:
    """Build tiny-cuda-nn's hash grid encoding, without parameters: set `params` before each call.

    settings: the grid's shape in tiny-cuda-nn's terms. Raises ValueError if the encoding's table differs in
    size from `table` [rows, F].
    """
    import tinycudann  # type: ignore[import-not-found]

    grid = {"otype": "Grid", "type": "Hash", "interpolation": "Linear", **settings}
    encoding = tinycudann.Encoding(3, grid, dtype=torch.float32)
    if encoding.params.numel() != table.numel():
        raise ValueError(
            f"tiny-cuda-nn lays this hash grid out in {encoding.params.numel()} numbers instead of "
            f"{table.numel()}, because it rounds levels in float32: change growth slightly, or "
            "set engine=torch"
        )
    del encoding.params  # replaced by a view of our table, which is not a parameter, at each call
    return encoding
