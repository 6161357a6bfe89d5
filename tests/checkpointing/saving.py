"""A small training state, and checkpoints of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from amortized.checkpointing import CheckpointConfig, CheckpointMeta, Checkpoints
from amortized.parallel import TrainingState, World

META = CheckpointMeta(step=5, prompts_seen=20, prior="a prior", text_dim=4)


def state_of(seed: int, width: int = 3) -> TrainingState:
    """The state of a small model after two optimizer steps."""
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    ema, learned = nn.Linear(4, 2), nn.Linear(2, 2)
    parameters = [*generator.parameters(), *learned.parameters()]
    optimizer = torch.optim.Adam(parameters, fused=True)
    for _ in range(2):
        generator(torch.randn(5, 4)).sum().backward()  # the reference model has no gradient yet
        optimizer.step()
    return TrainingState(generator=generator, ema=ema, optimizer=optimizer, learned=learned)


def checkpoints_in(folder: Path, **fields) -> Checkpoints:
    """The checkpoints of a run; `fields` are those of CheckpointConfig."""
    return Checkpoints(folder, CheckpointConfig(**{"keep": 9, **fields}), World())


def saved(folder: Path, *steps: int, **fields) -> Checkpoints:
    """Save a checkpoint of each step and wait; see `checkpoints_in`."""
    checkpoints = checkpoints_in(folder, **fields)
    for step in steps:
        checkpoints.save(state_of(step), replace(META, step=step))
    checkpoints.wait()
    return checkpoints


def same(one: TrainingState, other: TrainingState) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
