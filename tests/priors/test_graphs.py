"""When functions are captured as CUDA graphs. `tests/gpu` tests that a replay equals a call."""

from __future__ import annotations

import pytest
import torch

from amortized.priors import PriorConfig, graphs, load_prior
from amortized.priors.graphs import CALLS_BEFORE_CAPTURE, MAX_GRAPHS, MAX_IMAGES, GraphedFunction


@pytest.fixture
def captured(monkeypatch) -> list[tuple]:
    """The captures so far, as (shape, with gradient); replays are plain calls."""
    captures: list[tuple] = []

    def capture(function, tensors, needs_gradient):
        captures.append((tuple(tensors[0].shape), needs_gradient))
        return function

    monkeypatch.setattr(graphs, "capture", capture)
    return captures


def test_recurring_shapes_are_captured_once(captured):
    double = GraphedFunction(lambda x: 2 * x)
    for _ in range(CALLS_BEFORE_CAPTURE):
        assert torch.equal(double(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert not captured
    for _ in range(3):
        assert torch.equal(double(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert captured == [((2, 3), False)]


def test_calls_with_gradient_are_captured_separately(captured):
    double = GraphedFunction(lambda x: 2 * x)
    x = torch.ones(2, 3, requires_grad=True)
    for _ in range(CALLS_BEFORE_CAPTURE + 1):
        double(x)
        with torch.no_grad():
            double(x)
    assert captured == [((2, 3), True), ((2, 3), False)]


def test_large_batches_and_too_many_shapes_run_eagerly(captured):
    double = GraphedFunction(lambda x: 2 * x)
    for size in (MAX_IMAGES + 1, *range(1, MAX_GRAPHS + 3)):
        for _ in range(CALLS_BEFORE_CAPTURE + 1):
            assert len(double(torch.ones(size, 3))) == size
    assert [shape[0] for shape, _ in captured] == list(range(1, MAX_GRAPHS + 1))


def test_a_failed_capture_warns_once_and_runs_eagerly(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "capture", fail)
    double = GraphedFunction(lambda x: 2 * x)
    for _ in range(CALLS_BEFORE_CAPTURE):
        double(torch.ones(1))
    with pytest.warns(UserWarning, match="not permitted when stream is capturing; prior.graphs=false"):
        assert double(torch.ones(1)).item() == 2
    assert double(torch.ones(1)).item() == 2  # no second warning: warnings are errors here


def test_graphs_are_off_on_a_cpu(folder):
    assert load_prior(PriorConfig(path=str(folder))).graphs is False
    with pytest.raises(ValueError, match="prior.graphs=true needs a GPU"):
        load_prior(PriorConfig(path=str(folder), graphs=True))
    with pytest.raises(ValueError, match="^graphs needs a denoiser that stays"):
        PriorConfig(path=str(folder), graphs=True, offload=True)
