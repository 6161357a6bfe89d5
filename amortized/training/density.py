"""Density control in training: what it excludes, and its turn in a step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from amortized.density_control import DensityControlled, density_controlled
from amortized.parallel import TrainingState, World
from amortized.random import generator_for
from amortized.training.config import BaseRunConfig


def check_density_control(generator: nn.Module, config: BaseRunConfig) -> None:
    """Raise ValueError for settings that exclude splats, or cannot follow their changing number."""
    if not density_controlled(generator):
        return
    if config.distributed.strategy != "ddp":
        raise ValueError(
            f"distributed.strategy={config.distributed.strategy} shards parameters, and the number of splats "
            "changes during training: set distributed.strategy=ddp"
        )
    if config.trainer.ema_decay is not None:
        raise ValueError(
            f"trainer.ema_decay={config.trainer.ema_decay} averages weights over steps, and splats move and "
            "change their number: set trainer.ema_decay=null"
        )
    if config.renderer.point_light is not None:
        raise ValueError(
            "renderer.point_light shades by the normals of a field, which splats do not have: set it to null"
        )


def control_density(
    parts: Mapping[str, DensityControlled],
    state: TrainingState,
    config: BaseRunConfig,
    step: int,
    world: World,
) -> None:
    """Let splats add, move and remove some of themselves after the update of `step`, from 0. Collective."""
    for name, part in parts.items():
        part.control_density(
            state.optimizer,
            step=step + 1,
            progress=(step + 1) / config.trainer.steps,
            rng=generator_for(config.seed, "density", name, step),
            gather=world.gather,
        )
