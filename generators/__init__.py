"""Generators: text in, scene out. One file each, named here."""

from __future__ import annotations

from torch import nn

from generators.hyper_ingp import HyperINGP, HyperINGPConfig

# name -> (config class, module built from (config, text_dim))
GENERATORS: dict[str, tuple[type, type[nn.Module]]] = {
    "hyper-ingp": (HyperINGPConfig, HyperINGP),
}


def build_generator(config: object, text_dim: int) -> nn.Module:
    """The generator whose config class `config` is an instance of, for text of width `text_dim`."""
    for config_class, module_class in GENERATORS.values():
        if type(config) is config_class:
            return module_class(config, text_dim)
    known = ", ".join(f"{name} ({config_class.__name__})" for name, (config_class, _) in GENERATORS.items())
    raise ValueError(f"no generator has a config of type {type(config).__name__}; known generators: {known}")


__all__ = ["GENERATORS", "HyperINGP", "HyperINGPConfig", "build_generator"]
