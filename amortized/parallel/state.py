"""The training state: all tensors that a resume needs besides the config and the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amortized.density_control import fit_rows


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Modules and optimizer moments. Random draws and schedules are functions of the step."""

    generator: nn.Module
    ema: nn.Module | None  # a copy of the generator with averaged weights
    optimizer: torch.optim.Optimizer
    learned: nn.Module | None = None  # the guidance's reference model

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of everything that is trained."""
        return self.optimizer.param_groups

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, not copied, under names that are the same for every strategy."""
        tensors: dict[str, Tensor] = {}
        for part, module in self.modules().items():
            tensors |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
        for name, parameter in self._trained().items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        return tensors

    def load_targets(self, sizes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Tensors to load a checkpoint into, in place, whose tensors have these names and sizes.

        Clears the optimizer: it then has exactly the moments that the checkpoint has, as zeros until loaded.
        """
        self.optimizer.state.clear()
        for part, module in self.modules().items():
            prefix = f"{part}."
            stored = {name.removeprefix(prefix): s for name, s in sizes.items() if name.startswith(prefix)}
            fit_rows(module, stored, self.optimizer)
        trained = {f"optimizer.{name}": parameter for name, parameter in self._trained().items()}
        for name in sorted(sizes):
            owner, _, key = name.rpartition(".")
            if (parameter := trained.get(owner)) is not None:
                scalar = torch.zeros((), dtype=torch.float32, device=parameter.device)
                value = scalar if key == "step" else torch.zeros_like(parameter, requires_grad=False)
                self.optimizer.state[parameter][key] = value
        return self.tensors()

    def finish_loading(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore what is not a tensor, after `tensors` from `load_targets` have been filled."""
        for group in self.optimizer.param_groups:
            group["step"] = step  # Adan counts steps per group

    def modules(self) -> dict[str, nn.Module]:
        """The parts that exist: generator, ema, learned."""
        parts = {"generator": self.generator, "ema": self.ema, "learned": self.learned}
        return {part: module for part, module in parts.items() if module is not None}

    def _trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer updates, by checkpoint name."""
        optimized = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return {
            f"{part}.{name}": parameter
            for part, module in self.modules().items()
            if part != "ema"
            for name, parameter in module.named_parameters()
            if id(parameter) in optimized
        }
