"""Costs counted on fake tensors, against arithmetic and against real tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from amortized.encodings import HashGrid
from amortized.training import costs
from amortized.training.metering import Meter
from tests.training.toy import TINY, make_trainer


def test_the_cost_of_a_linear_layer_in_closed_form():
    layer, meter = nn.Linear(3, 5, bias=False), Meter()
    meter.fake_weights(layer)
    with meter, meter.section("all") as cost:
        with meter.section("forward") as forward:
            out = layer(torch.ones(7, 3))
        out.sum().backward()
    assert forward.flops == forward.flops_float32 == 2 * 7 * 3 * 5 and forward.operations == 1
    assert forward.traffic == 4 * (3 * 5 + 7 * 5)  # fake tensors only: the real input is on the host
    assert cost.flops == 2 * forward.flops  # the input needs no gradient
    assert layer.weight.grad.shape == (5, 3) and layer.weight.device.type == "cpu"


def test_memory_counts_live_tensors():
    meter = Meter()
    source = nn.Parameter(torch.ones(1000))
    holder = nn.ParameterList([source])
    meter.fake_weights(holder)
    fake = holder[0]
    with meter, torch.no_grad(), meter.section("all") as cost:
        result = fake * 2
        for _ in range(3):
            result = result * 2  # two live at a time
        assert meter.live == 4000 and cost.peak == 8000
        del result
        assert meter.live == 0 and cost.peak == 8000


def test_sections_include_nested_ones_and_count_fused_operations_as_one():
    holder, meter = nn.ParameterList([torch.ones(10)]), Meter(integer=3)
    meter.fake_weights(holder)
    with meter, torch.no_grad(), meter.section("all") as cost:
        with meter.section("part") as part, meter.as_one():
            doubled = holder[0] * 2 + 1
        with meter.outside():
            doubled * 2
        assert int(doubled.long().sum()) == 3 and doubled.sum().item() == 0.5
    assert part.operations == 1 and part.traffic == 2 * 2 * 40
    assert cost.operations == 1 + 3  # long, sum, sum; not the operation in `outside`


class RealMeter(Meter):
    """Counts real tensors in the same way."""

    def counts(self, tensor: torch.Tensor) -> bool:
        return True

    def __enter__(self) -> RealMeter:
        torch.utils._python_dispatch.TorchDispatchMode.__enter__(self)
        return self

    def __exit__(self, *error) -> None:
        torch.utils._python_dispatch.TorchDispatchMode.__exit__(self, *error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with _disable_current_modes():
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                self._account(tensor)
        return out


@pytest.mark.parametrize("generator", [None, *TINY])
def test_a_step_needs_the_predicted_memory(tmp_path, monkeypatch, generator):
    trainer = make_trainer(tmp_path / "real", steps=2, generator=generator)
    objective, batch, meter = trainer.objective, trainer.prepare(0, 0), RealMeter()
    with meter, meter.section("step") as cost:
        objective(batch, 0.0, (True,)).total.backward()
    measured = cost.peak - sum(p.grad.nbytes for p in objective.parameters() if p.grad is not None)
    predicted = costs.step_memory(make_trainer(tmp_path / "fake", steps=2, generator=generator))
    # The prediction assumes a share of rays that hit, and does not count the host's tensors.
    assert 0.5 < predicted / measured < 1.6, (predicted, measured)


def test_memory_is_predicted_without_native_kernels_and_graphs(tmp_path):
    """They read memory, which fake tensors do not have: with them a dry run on a GPU would fail."""
    trainer = make_trainer(tmp_path, steps=2)
    grids = [part for part in trainer.state.generator.modules() if isinstance(part, HashGrid)]
    prior = trainer.guidance.prior
    prior.graphs = True
    assert grids and {grid.config.engine for grid in grids} == {"auto"}
    assert costs.step_memory(trainer) > 0
    assert {grid.config.engine for grid in grids} == {"torch"} and prior.graphs is False
