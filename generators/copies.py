"""Copy the object that a generator makes of one text into an `INGP`, which holds it without the text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from amortized.encodings import HashGrid
from generators.field import FeatureField, PerPrompt
from generators.hyper_ingp import HyperINGP
from generators.ingp import INGP, DensityField, INGPConfig

GRID = ("num_levels", "features_per_level", "log2_table_size", "base_resolution", "growth")
SHAPE = ("hidden", "include_position", "shared_width", "bounding_radius")
FIELD = {
    "sdf": ("sphere_radius",),
    "density": ("activation", "blob", "blob_scale", "blob_radius"),
}


def obstacles(source: nn.Module, target: INGP) -> list[str]:
    """The settings that keep `target` from holding an object of `source`, as KEY=VALUE of the source.

    Empty if `copy_object` can copy. A setting without a value, `generator.name`, if `source` is another kind
    of generator.
    """
    if not isinstance(source, HyperINGP | INGP):
        return ["generator.name"]
    here, there = target.config, source.config
    geometry = there.geometry if isinstance(there, INGPConfig) else "sdf"
    different = [] if here.geometry == geometry else [f"geometry={geometry}"]
    names = (*SHAPE, *FIELD[geometry])
    different += [f"{n}={_shown(getattr(there, n))}" for n in names if getattr(here, n) != getattr(there, n)]
    different += [
        f"grid.{name}={getattr(there.grid, name)}"
        for name in GRID
        if getattr(here.grid, name) != getattr(there.grid, name)
    ]
    if isinstance(there, INGPConfig) and there.bias and not here.bias:
        different.append("bias=true")
    if _num_open(target.grid) < _num_open(source.grid):
        different.append("grid.open_levels=null")
    return [f"generator.{one}" for one in different]


@torch.no_grad()
def copy_object(source: HyperINGP | INGP, scene: FeatureField | DensityField, target: INGP) -> None:
    """Give `target` the object `scene`, of one prompt, that `source` made.

    Both compute the same values, in another order of summation. Only if `obstacles` has none.
    """
    is_open = torch.arange(source.grid.config.num_levels) < _num_open(source.grid)
    for level, shown in zip(source.grid.levels, is_open.tolist(), strict=True):
        rows = slice(level.offset, level.offset + level.size)
        target.grid.table[rows] = source.grid.table[rows] if shown else 0
    if source.shared is not None and target.shared is not None:
        target.shared.load_state_dict(source.shared.state_dict())
    geometry = scene.head_density if isinstance(scene, DensityField) else scene.head_sdf
    for new, old in ((target.head_geometry, geometry), (target.head_rgb, scene.head_rgb)):
        linear = [layer for layer in new if isinstance(layer, nn.Linear)]
        for layer, (weight, bias) in zip(linear, _layers(old), strict=True):
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def _layers(head: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    """The weights [out, in] and biases [out] of a head's linear layers; a `PerPrompt` has none."""
    if isinstance(head, PerPrompt):
        return [(weights[0].T, None) for weights in head.rows]
    assert isinstance(head, nn.Sequential), "an INGP's heads are modules"
    return [(layer.weight, layer.bias) for layer in head if isinstance(layer, nn.Linear)]


def _num_open(grid: HashGrid) -> int:
    """The number of levels in use."""
    return grid.config.num_levels if grid.num_open is None else int(grid.num_open)


def _shown(value: object) -> str:
    """A setting's value as it is written on the command line."""
    if isinstance(value, tuple):
        return str(list(value)).replace(" ", "")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
