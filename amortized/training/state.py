"""What a run is at a step: everything that continuing needs besides its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Modules and moments; randomness is a function of the step, and so are all schedules."""

    generator: nn.Module
    ema: nn.Module | None  # a copy of the generator with averaged weights
    optimizer: torch.optim.Optimizer
    learned: nn.Module | None = None  # what guidance learns of the renders

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all that is trained, each with its rate."""
        return self.optimizer.param_groups

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, not copied, under names that are the same in every strategy."""
        found: dict[str, Tensor] = {}
        for part, module in self._modules().items():
            found |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
        for name, parameter in self._trained().items():
            kept = self.optimizer.state.get(parameter, {})
            found |= {f"optimizer.{name}.{key}": value for key, value in kept.items()}
        return found

    def room(self, names: set[str]) -> dict[str, Tensor]:
        """The tensors that a checkpoint with these names is read into, in place.

        The optimizer then holds what the checkpoint has of it, and nothing else.
        """
        self.optimizer.state.clear()
        trained = {f"optimizer.{name}": parameter for name, parameter in self._trained().items()}
        for name in sorted(names):
            owner, _, key = name.rpartition(".")
            if (parameter := trained.get(owner)) is not None:
                scalar = torch.zeros((), dtype=torch.float32, device=parameter.device)
                value = scalar if key == "step" else torch.zeros_like(parameter, requires_grad=False)
                self.optimizer.state[parameter][key] = value
        return self.tensors()

    def settle(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from what was read into `room` at a step."""
        for group in self.optimizer.param_groups:
            group["step"] = step  # of Adan, which counts for a whole group

    def _modules(self) -> dict[str, nn.Module]:
        parts = {"generator": self.generator, "ema": self.ema, "learned": self.learned}
        return {part: module for part, module in parts.items() if module is not None}

    def _trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer trains."""
        its = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        parts = {part: module for part, module in self._modules().items() if part != "ema"}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
            if id(parameter) in its
        }
