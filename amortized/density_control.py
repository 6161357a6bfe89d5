"""Parts of a generator that change the number of their parameters during training: splats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@runtime_checkable
class DensityControlled(Protocol):
    """A module whose parameters have one row per element, and that adds and removes elements itself."""

    rows_of: str  # the name of a parameter with one row per element

    @property
    def count(self) -> int:
        """The number of elements."""
        ...

    @property
    def limit(self) -> int:
        """The largest number of elements that training can reach."""
        ...

    def resize(self, count: int, optimizer: Optimizer | None = None) -> None:
        """Give the module `count` elements of arbitrary values, which are loaded next."""
        ...

    def control_density(
        self,
        optimizer: Optimizer,
        *,
        step: int,
        progress: float,
        rng: torch.Generator,
        gather: Callable[[Tensor], Tensor],
    ) -> None:
        """Add, move and remove elements after the update of `step`, counted from 1. Collective.

        A pure function of the modules' and optimizers' states on all ranks, `step`, `progress` = step / steps
        and `rng`, a CPU generator that is the same on all ranks. gather: [rows, ...] of this rank to
        [ranks * rows, ...] of all.
        """
        ...


def density_controlled(module: nn.Module) -> dict[str, DensityControlled]:
    """The parts of a module that control their density, by dotted name; "" is the module itself."""
    return {name: part for name, part in module.named_modules() if isinstance(part, DensityControlled)}


def fit_rows(
    module: nn.Module, sizes: Mapping[str, Sequence[int]], optimizer: Optimizer | None = None
) -> None:
    """Give each such part as many elements as stored tensors have rows; `sizes` by the names of `module`."""
    for name, part in density_controlled(module).items():
        shape = sizes.get(f"{name}.{part.rows_of}".removeprefix("."))
        if shape:
            part.resize(shape[0], optimizer)
