"""What a run's settings need of a machine: devices and optional packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amortized.files import in_project

TRACKERS = ("wandb", "trackio")
GPU_ENGINES = ("tiny-cuda-nn", "triton")


@dataclass(frozen=True)
class Needs:
    """The CUDA devices and packages that settings name, each with the setting as KEY=VALUE."""

    devices: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)


def layers_of(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the settings of a run given as [CONFIG] KEY=VALUE ..., the later over the earlier.

    Raises:
        ConfigError: the preset or an override cannot be read.
    """
    from amortized.config.presets import parse_overrides, read_presets

    presets = [Path(in_project(word)) for word in words[:1] if "=" not in word]
    layers = [layer for path in presets for _, layer in read_presets(path)]
    return layers + parse_overrides(words[len(presets) :])


def needs_of(words: Sequence[str]) -> Needs:
    """Return what the settings [CONFIG] KEY=VALUE ... need. Works without PyTorch. Raises ConfigError."""
    from amortized.config.presets import flatten

    values: dict[str, Any] = {}
    for layer in layers_of(words):
        values |= flatten(layer)
    devices, packages = {}, {}
    for key, value in values.items():
        setting = f"{key}={value}"
        if key in ("device", "prior.denoiser_device") and str(value).startswith("cuda"):
            devices[str(value)] = setting
        elif key.endswith(".engine") and value in GPU_ENGINES:
            packages[str(value)] = setting
            devices.setdefault("cuda", setting)
        elif key == "monitoring.tracker" and value in TRACKERS:
            packages[str(value)] = setting
        elif key == "distributed.strategy" and str(value).startswith("zero"):
            packages["deepspeed"] = setting
    return Needs(devices, packages)
