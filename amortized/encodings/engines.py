"""Which code looks a hash grid up: PyTorch anywhere, tiny-cuda-nn or Triton on a GPU.

All read the same table, so a checkpoint moves between them.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

ENGINES = ("auto", "torch", "tiny-cuda-nn", "triton")
PACKAGES = {"tiny-cuda-nn": "tinycudann", "triton": "triton"}
GPU_FEATURES = (1, 2, 4, 8)  # features per level that they can look up
INSTALL = {
    "tiny-cuda-nn": "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch",
    "triton": "pip install triton",
}


@cache
def installed(name: str) -> bool:
    """Whether the package of a GPU engine is there; importing it is left to the first lookup."""
    return find_spec(PACKAGES[name]) is not None


def check_engine(name: str, features_per_level: int) -> None:
    """Raise ValueError where the engine `name` is unknown, not installed, or cannot have such features."""
    if name not in ENGINES:
        raise ValueError(f"hash grid engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name in PACKAGES and not installed(name):
        raise ValueError(f"hash grid engine {name} is not installed: {INSTALL[name]}, or set engine=auto")
    if name in PACKAGES and features_per_level not in GPU_FEATURES:
        raise ValueError(
            f"hash grid engine {name} needs 1, 2, 4 or 8 features_per_level, got {features_per_level}; "
            "engine=torch takes any number"
        )


def engine_on(device: torch.device, name: str, features_per_level: int) -> str:
    """The engine that `name` stands for on a device; raises ValueError where it cannot run there."""
    if device.type != "cuda":
        if name in PACKAGES:
            raise ValueError(
                f"hash grid engine {name} needs a CUDA device, the grid is on {device}: "
                "set engine=auto, which reads the same weights"
            )
        return "torch"
    if name != "auto":
        return name
    if features_per_level not in GPU_FEATURES:
        return "torch"
    return next((package for package in PACKAGES if installed(package)), "torch")


def tiny_cuda_nn_encoding(settings: dict[str, int | float], table: Tensor) -> Any:
    """tiny-cuda-nn's encoding of a hash grid in its own words, without parameters of its own.

    Raises ValueError where its table would have another size than `table`.
    """
    import tinycudann  # type: ignore[import-not-found]

    grid = {"otype": "Grid", "type": "Hash", "interpolation": "Linear", **settings}
    encoding = tinycudann.Encoding(3, grid, dtype=torch.float32)
    if encoding.params.numel() != table.numel():
        raise ValueError(
            f"tiny-cuda-nn lays this hash grid out in {encoding.params.numel()} numbers instead of "
            f"{table.numel()}, because its levels are rounded in float32: change growth a little, or "
            "set engine=torch"
        )
    del encoding.params  # ours is set at each call, as a plain tensor
    return encoding
