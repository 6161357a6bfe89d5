"""Which code looks a hash grid up: PyTorch anywhere, tiny-cuda-nn or Triton on a GPU.

All read the same table, so a checkpoint moves between them.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from amortized.encodings.hash_grid import HashGridConfig

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


def engine_on(device: torch.device, config: HashGridConfig) -> str:
    """The engine of a grid on a device; raises ValueError where the one asked for cannot run there."""
    if device.type != "cuda":
        if config.engine in PACKAGES:
            raise ValueError(
                f"hash grid engine {config.engine} needs a CUDA device, the grid is on {device}: "
                "set engine=auto, which reads the same weights"
            )
        return "torch"
    if config.engine != "auto":
        return config.engine
    if config.features_per_level not in GPU_FEATURES:
        return "torch"
    return next((name for name in PACKAGES if installed(name)), "torch")


def tiny_cuda_nn_encoding(config: HashGridConfig, table: Tensor) -> Any:
    """tiny-cuda-nn's encoding of this shape, without parameters of its own.

    Raises ValueError where its table would have another size.
    """
    import tinycudann  # type: ignore[import-not-found]

    encoding = tinycudann.Encoding(
        3,
        {
            "otype": "Grid",
            "type": "Hash",
            "interpolation": "Linear",
            "n_levels": config.num_levels,
            "n_features_per_level": config.features_per_level,
            "log2_hashmap_size": config.log2_table_size,
            "base_resolution": config.base_resolution,
            "per_level_scale": config.growth,
        },
        dtype=torch.float32,
    )
    if encoding.params.numel() != table.numel():
        raise ValueError(
            f"tiny-cuda-nn lays this hash grid out in {encoding.params.numel()} numbers instead of "
            f"{table.numel()}, because its levels are rounded in float32: change growth a little, or "
            "set engine=torch"
        )
    del encoding.params  # ours is set at each call, as a plain tensor
    return encoding
