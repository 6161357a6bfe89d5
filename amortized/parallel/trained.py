"""What a strategy distributes: the loss module and its trainable parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from amortized.parallel.ema import Ema
from amortized.parallel.optim import LearnedGroup, OptimizerConfig, build_optimizer
from amortized.parallel.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The loss as one module, so that wrappers see every use of every parameter, and its parts."""

    loss: nn.Module  # its forward pass gives the loss of a batch
    generator: nn.Module  # a submodule of `loss`
    learned: nn.Module | None = None  # another one, with all reference models; None: there is none
    learned_groups: Sequence[LearnedGroup] = ()  # its parts, each with a learning rate
    ema: Ema | None = None  # averaged weights of the generator
    dtype: torch.dtype = torch.float32  # that autocast computes the generator in
    batch_size: int = 1  # prompts in one forward pass

    def build_state(self, config: OptimizerConfig) -> TrainingState:
        """The training state with a new optimizer over all trainable parts."""
        return TrainingState(
            generator=self.generator,
            ema=None if self.ema is None else self.ema.module,
            optimizer=build_optimizer(config, self.generator, self.learned_groups),
            learned=self.learned,
        )


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a generator, its layers or stages: the units to shard and gather."""
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    return [block for blocks in lists for block in blocks]
