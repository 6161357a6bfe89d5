"""Generators: text in, scene out. One file each.

A generator's file defines a frozen dataclass of its settings, told from the others by its `name`, with
`build(text_dim)`, the module; and that module, whose `forward(text: TextCondition, z) -> Scene` takes z
[P, z_dim] where it has a `z_dim` (standard normal: what the text leaves open), and ignores it otherwise.
"""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, Protocol

from torch import nn

# One line a generator: its file, and there the class of its settings.
GENERATORS = (
    "hyper_ingp.HyperINGPConfig",
    "conv3d.Conv3DConfig",
    "triplane_transformer.TriplaneTransformerConfig",
)


def config_class(path: str) -> type:
    """The class of settings that a line of GENERATORS names."""
    file, _, name = path.partition(".")
    return getattr(import_module(f"{__name__}.{file}"), name)


if TYPE_CHECKING:

    class GeneratorConfig(Protocol):
        """Settings of any generator."""

        @property
        def name(self) -> str: ...

        def build(self, text_dim: int) -> nn.Module:
            """The untrained generator, for text of width `text_dim`."""
            ...

else:
    GeneratorConfig = reduce(or_, map(config_class, GENERATORS))

DEFAULT = config_class(GENERATORS[0])

__all__ = ["DEFAULT", "GENERATORS", "GeneratorConfig", "config_class"]
