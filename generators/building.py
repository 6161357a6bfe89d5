"""Build a generator with its learned background."""

from __future__ import annotations

from torch import nn

from generators import GeneratorConfig
from generators.surroundings import Surrounded, SurroundingsConfig


def build_generator(
    config: GeneratorConfig, environment: SurroundingsConfig | None, text_dim: int
) -> nn.Module:
    """The untrained generator for text of width `text_dim`; `environment` adds a learned background."""
    generator = config.build(text_dim=text_dim)
    if environment is not None:
        generator = Surrounded(generator, environment.build(text_dim))
    return generator
