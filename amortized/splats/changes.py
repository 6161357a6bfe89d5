"""Changes of the rows of an object's splats, and the same change of an optimizer's moments.

Density control copies, moves and removes splats. Each of its functions returns a `Change`, which says from
which old row each new row comes; so moments and statistics follow without knowing the rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortized.splats.parameters import NAMES, Parameters


@dataclass(frozen=True, kw_only=True)
class Change:
    """N old splats become M new ones."""

    parameters: Parameters  # of the new splats
    source: Tensor  # [M] int64, the old row that each new row comes from
    fresh: Tensor  # [M] bool: starts with moments of zero


def unchanged(parameters: Parameters) -> Change:
    """Return the change that changes nothing."""
    means = parameters["means"]
    rows = torch.arange(len(means), device=means.device)
    return Change(parameters=dict(parameters), source=rows, fresh=torch.zeros_like(rows, dtype=torch.bool))


def then(first: Change, second: Change) -> Change:
    """Return both changes as one; the second starts from the splats of the first."""
    return Change(
        parameters=second.parameters,
        source=first.source[second.source],
        fresh=first.fresh[second.source] | second.fresh,
    )


def rows(parameters: Parameters, source: Tensor, fresh: Tensor) -> Change:
    """Return the change to the old rows `source` [M], which may repeat."""
    return Change(
        parameters={name: parameters[name].detach()[source] for name in NAMES}, source=source, fresh=fresh
    )


@torch.no_grad()
def replace_parameter(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: Tensor, change: Change
) -> nn.Parameter:
    """Return `new` as the parameter that takes the place of `old` in an optimizer, moments included.

    Moments are the tensors of the state with the old parameter's shape: each new row continues that of its
    source, or starts from zero if it is fresh. Numbers such as the step count stay. Raises ValueError if the
    optimizer does not train `old`.
    """
    parameter = nn.Parameter(new.detach().to(old), requires_grad=old.requires_grad)
    groups = [group for group in optimizer.param_groups if any(one is old for one in group["params"])]
    if not groups:
        raise ValueError("the optimizer does not train this parameter")
    for group in groups:
        group["params"] = [parameter if one is old else one for one in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[parameter] = {
            name: moved(value, change) if isinstance(value, Tensor) and value.shape == old.shape else value
            for name, value in state.items()
        }
    return parameter


def moved(values: Tensor, change: Change) -> Tensor:
    """Return values [M, ...] of the new rows from those of the old ones [N, ...]; fresh rows are 0."""
    values = values[change.source.to(values.device)].clone()
    values[change.fresh.to(values.device)] = 0
    return values
