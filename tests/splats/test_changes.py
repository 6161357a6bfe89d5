"""An optimizer's moments follow the rows of the splats."""

from __future__ import annotations

import pytest
import torch

from amortized.splats import NAMES, Change, replace_parameter
from amortized.splats.changes import rows, then, unchanged
from tests.splats import made

OPTIMIZERS = [
    (torch.optim.Adam, {}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.SGD, {"momentum": 0.9}),
]


def apply(variables: dict, optimizer: torch.optim.Optimizer, change: Change) -> dict:
    return {
        name: replace_parameter(optimizer, variables[name], change.parameters[name], change) for name in NAMES
    }


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS)
def test_moved_rows_continue_as_they_would_have(kind: type, settings: dict):
    """A step after a reordering with copies and removals equals the same rows of a step without it."""
    variables, optimizer = made.trained(made.cloud(20), kind, **settings)
    others, other_optimizer = made.trained(made.cloud(20), kind, **settings)
    source = torch.tensor([5, 5, 0, 19, 7])
    change = rows(variables, source, torch.zeros(5, dtype=torch.bool))
    variables = apply(variables, optimizer, change)
    made.step_once(variables, optimizer, 2)
    made.step_once(others, other_optimizer, 2)
    for name in NAMES:
        torch.testing.assert_close(variables[name], others[name][source], rtol=0, atol=1e-15)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 5
    assert len(optimizer.state) == 5


def test_fresh_rows_start_with_moments_of_zero():
    variables, optimizer = made.trained(made.cloud(20), torch.optim.Adam)
    change = rows(variables, torch.arange(20), torch.arange(20) == 3)
    before = {name: optimizer.state[variables[name]]["exp_avg"].clone() for name in NAMES}
    variables = apply(variables, optimizer, change)
    for name in NAMES:
        state = optimizer.state[variables[name]]
        assert not state["exp_avg"][3].any() and not state["exp_avg_sq"][3].any()
        assert torch.equal(state["exp_avg"][:3], before[name][:3]) and state["exp_avg"][4:].all()
        assert int(state["step"]) == 2


def test_two_changes_are_one():
    parameters = made.cloud(10)
    first = rows(parameters, torch.tensor([1, 2, 2, 9]), torch.tensor([False, False, True, False]))
    second = rows(first.parameters, torch.tensor([3, 2, 0]), torch.tensor([False, False, True]))
    both = then(first, second)
    assert both.source.tolist() == [9, 2, 1] and both.fresh.tolist() == [False, True, True]
    for name in NAMES:
        assert torch.equal(both.parameters[name], parameters[name][both.source])
    same = unchanged(parameters)
    assert torch.equal(then(first, unchanged(first.parameters)).source, first.source)
    assert torch.equal(same.source, torch.arange(10))


def test_a_parameter_of_another_optimizer_is_refused():
    variables, _ = made.trained(made.cloud(5), torch.optim.Adam)
    _, optimizer = made.trained(made.cloud(5), torch.optim.Adam)
    with pytest.raises(ValueError, match="the optimizer does not train this parameter"):
        replace_parameter(optimizer, variables["means"], variables["means"], unchanged(variables))
