"""A generator from the folder that `python -m amortized.training.export` wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from amortized.config import build_config
from generators import DEFAULT, GeneratorConfig
from generators.surroundings import Surrounded, SurroundingsConfig


@dataclass(frozen=True, kw_only=True)
class _Parts:
    generator: GeneratorConfig = field(default_factory=DEFAULT)
    surroundings: SurroundingsConfig | None = None


def from_pretrained(folder: str | Path) -> nn.Module:
    """The generator, on the CPU and ready for use: `forward(text, z)` gives scenes.

    What text it reads, and how its scenes want to be rendered, is in the folder's config.json. Raises
    ValueError where the folder is none of ours, or is damaged.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        parts = build_config(_Parts, {name: config[name] for name in ("generator", "surroundings")})
        width = int(config["text_dim"])
        generator = parts.generator.build(text_dim=width)
        if parts.surroundings is not None:
            generator = Surrounded(generator, parts.surroundings.build(width))
        generator.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder} holds no generator that can be read ({reason}): export it anew from its run"
        ) from error
    return generator.eval().requires_grad_(False)
