"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from amortized.config import Schedule, check, geometric_at


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, AdamW or Adan, with warm-up and decay, and separate learning rates for some parts."""

    name: Literal["adam", "adamw", "adan"] = "adam"
    learning_rate: float = 4e-3
    encoding_learning_rate: float | None = None  # of modules named `grid` (hash grids); null: learning_rate
    environment_learning_rate: float | None = None  # of the learned background; null: learning_rate
    # Of its hash grid; null: environment_learning_rate.
    environment_encoding_learning_rate: float | None = None
    betas: tuple[float, ...] = (0.0, 0.99)  # two; for adan three: gradient, its difference, its square
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # adamw and adan
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    min_lr_ratio: float = 0.05  # cosine: final learning rate / learning_rate
    clip_norm: float | None = None  # of the whole gradient

    def __post_init__(self) -> None:
        check(self, "learning_rate", "epsilon", "clip_norm", above=0)
        check(self, "encoding_learning_rate", "environment_learning_rate", above=0)
        check(self, "environment_encoding_learning_rate", above=0)
        num_betas = 3 if self.name == "adan" else 2
        if len(self.betas) != num_betas:
            example = "[0.98, 0.92, 0.99]" if num_betas == 3 else "[0.9, 0.99]"
            raise ValueError(
                f"betas must be {num_betas} numbers for name={self.name}, e.g. {example}, "
                f"got {list(self.betas)}"
            )
        check(self, "betas", at_least=0, below=1)
        check(self, "min_lr_ratio", at_least=0, at_most=1)
        check(self, "warmup_steps", at_least=0, limit=10**9)
        check(self, "weight_decay", at_least=0)
        if self.name == "adam" and self.weight_decay:
            raise ValueError("weight_decay needs name=adamw: adam would mix it into its moments")


@dataclass(frozen=True, kw_only=True)
class LearnedGroup:
    """A reference model of the guidance, with its settings."""

    module: nn.Module
    rate: float  # learning rate
    decay: float = 0.0  # weight decay
    name: str = "learned"


def build_optimizer(
    config: OptimizerConfig, module: nn.Module, learned: Sequence[LearnedGroup] = ()
) -> torch.optim.Optimizer:
    """An optimizer with one parameter group per learning rate, called `name`.

    Parameters of submodules named `surroundings` or `grid` get their own group; so does the grid inside
    `surroundings` if it has a learning rate. So does each parameter of a submodule with `learning_rates`, a
    schedule by parameter name. All others share one. The last groups hold the reference models `learned`.
    """
    rates: dict[str, Schedule | None]
    rates = {"surroundings": config.environment_learning_rate, "grid": config.encoding_learning_rate}
    if config.environment_encoding_learning_rate is not None:
        rates = {"surroundings.grid": config.environment_encoding_learning_rate, **rates}
    for part in module.modules():
        rates |= getattr(part, "learning_rates", {})
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in ("", *rates)}
    for name, parameter in module.named_parameters():
        owners = set(name.split("."))
        parts[next((part for part in rates if owners >= set(part.split("."))), "")].append(parameter)
    rate = config.learning_rate
    groups = [
        {"params": parameters, "lr": rate, "schedule": rates.get(part) or rate, "name": part or "generator"}
        for part, parameters in parts.items()
        if parameters
    ]
    for group in learned:
        # By default no decay: a zero embedding is not a text, and no better a model of the renders.
        options = {"lr": group.rate, "schedule": group.rate, "weight_decay": group.decay}
        groups.append({"params": list(group.module.parameters()), **options, "name": group.name})
    betas: Any = config.betas
    shared = {"lr": rate, "betas": betas, "eps": config.epsilon, "weight_decay": config.weight_decay}
    if config.name == "adan":
        from timm.optim import Adan  # takes seconds to import

        return Adan(groups, **shared)
    optimizer = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    fused = all(p.device.type in ("cuda", "cpu") for p in module.parameters())
    return optimizer(groups, **shared, fused=fused)


def set_learning_rate(groups: list[dict[str, Any]], config: OptimizerConfig, step: int, steps: int) -> None:
    """Set the rates of `step`, counted from 0, of `steps`. A function of the step: nothing needs saving."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    factor = 1.0
    if config.decay == "cosine":
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        factor = config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine
    for group in groups:
        group["lr"] = geometric_at(group["schedule"], step / steps) * warmup * factor
