"""Optimizers, learning rates and the moving average of weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, AdamW or Adan with a warm-up and a decay; encodings (hash grids) have a rate of their own."""

    name: Literal["adam", "adamw", "adan"] = "adam"
    learning_rate: float = 4e-3
    encoding_learning_rate: float | None = None  # of parts named `grid`; None: the same rate
    surroundings_learning_rate: float | None = None  # of parts named `surroundings`; None: the same rate
    betas: tuple[float, ...] = (0.0, 0.99)  # two; adan's three are of gradient, its change, its square
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # not adam's
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    final_share: float = 0.05  # of the rate, at the end of a cosine decay
    clip_norm: float | None = None  # of the whole gradient

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name} must be positive, got {getattr(self, name)}")
        for name in ("encoding_learning_rate", "surroundings_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and rate <= 0:
                raise ValueError(f"optimizer.{name} must be positive or null, got {rate}")
        wanted = 3 if self.name == "adan" else 2
        if len(self.betas) != wanted:
            example = "[0.98, 0.92, 0.99]" if wanted == 3 else "[0.9, 0.99]"
            raise ValueError(
                f"optimizer.betas of {self.name} are {wanted}, e.g. {example}, got {list(self.betas)}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must lie in [0, 1), got {list(self.betas)}")
        if self.name == "adam" and self.weight_decay:
            raise ValueError(
                "optimizer.weight_decay needs optimizer.name=adamw: adam would mix it into its moments"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"optimizer.final_share must lie in [0, 1], got {self.final_share}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm must be positive or null, got {self.clip_norm}")


def build_optimizer(
    config: OptimizerConfig, module: nn.Module, learned: nn.Module | None = None, learned_rate: float = 0.0
) -> torch.optim.Optimizer:
    """A parameter group for each part with a rate of its own, and one for the rest.

    The last group is that of a learned model of the renders, where there is one.
    """
    own = {"surroundings": config.surroundings_learning_rate, "grid": config.encoding_learning_rate}
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in ("", *own)}
    for name, parameter in module.named_parameters():
        inside = name.split(".")
        parts[next((part for part in own if part in inside), "")].append(parameter)
    rate = config.learning_rate
    groups = [
        {"params": parameters, "lr": rate, "base_lr": own.get(part) or rate}
        for part, parameters in parts.items()
        if parameters
    ]
    if learned is not None:
        # No decay: zero is no text, and no better a model of renders than what is learned.
        own_rate = {"lr": learned_rate, "base_lr": learned_rate, "weight_decay": 0.0}
        groups.append({"params": list(learned.parameters()), **own_rate})
    betas: Any = config.betas
    shared = {"lr": rate, "betas": betas, "eps": config.epsilon, "weight_decay": config.weight_decay}
    if config.name == "adan":
        from timm.optim import Adan  # seconds

        return Adan(groups, **shared)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    fused = all(p.device.type in ("cuda", "cpu") for p in module.parameters())
    return kind(groups, **shared, fused=fused)


def set_learning_rate(groups: list[dict[str, Any]], config: OptimizerConfig, step: int, steps: int) -> None:
    """Rates for `step`: a function of the step, so that nothing about them needs saving."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    factor = 1.0
    if config.decay == "cosine":
        factor = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in groups:
        group["lr"] = group["base_lr"] * warm * factor


class Ema:
    """An exponential moving average of a module's weights, as a copy ready to be used.

    The decay is warmed up, min(decay, (1 + step) / (10 + step)), so that the start is soon forgotten;
    being a function of the step, it leaves nothing but the weights to save.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after `step`, counted from 0; buffers are copied."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), share)
        for mine, new in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(new)
