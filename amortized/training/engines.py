"""The implementations of hash grids and splats that a run computes with."""

from __future__ import annotations

import torch
from torch import nn

from amortized.density_control import density_controlled
from amortized.encodings import HashGrid
from amortized.rendering import RendererConfig, splat_engine_on


def engines(generator: nn.Module, renderer: RendererConfig, device: torch.device) -> dict[str, str]:
    """The engine of each hash grid and of the splats in a generator, by dotted module name.

    Raises ValueError if the config names an engine that cannot run on the device.
    """
    found = {name: part.engine for name, part in generator.named_modules() if isinstance(part, HashGrid)}
    for name in density_controlled(generator):
        found[name or "the splat renderer"] = splat_engine_on(device, renderer.splat_engine)
    return found
