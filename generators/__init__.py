"""Generators: text in, scene out. One file each.

A generator's file defines a frozen dataclass of settings, with a unique `name` and a method
`build(text_dim)` that returns the untrained module. The module's `forward(text: TextCondition, z)` returns a
`Scene`, a `DensityScene` or a `SplatScene`. With a `z_dim`, standard normal z [P, z_dim] varies the scenes of
a text; otherwise z is ignored.
"""

from __future__ import annotations

from typing import get_args

from torch import nn

from generators.conv3d import Conv3DConfig
from generators.environment import EnvironmentConfig, WithEnvironment
from generators.hyper_ingp import HyperINGPConfig
from generators.ingp import INGPConfig
from generators.splats import SplatsConfig
from generators.triplane_transformer import TriplaneTransformerConfig

# A new generator is one more member of this union.
GeneratorConfig = HyperINGPConfig | Conv3DConfig | TriplaneTransformerConfig | INGPConfig | SplatsConfig

GENERATORS = {config.name: config for config in get_args(GeneratorConfig)}
DEFAULT_GENERATOR = HyperINGPConfig


def build_generator(
    config: GeneratorConfig, environment: EnvironmentConfig | None, text_dim: int
) -> nn.Module:
    """Build the untrained generator for text embeddings of width `text_dim`.

    With an `environment`, the generator's scenes have a learned background.
    """
    generator = config.build(text_dim=text_dim)
    if environment is not None:
        generator = WithEnvironment(generator, environment.build(text_dim))
    return generator


__all__ = ["DEFAULT_GENERATOR", "GENERATORS", "GeneratorConfig", "build_generator"]
