"""When networks are replayed as CUDA graphs; that a replay equals a call is a test of `tests/gpu`."""

from __future__ import annotations

import pytest
import torch

from amortized.priors import PriorConfig, graphs, load_prior
from amortized.priors.graphs import CALLS_BEFORE, MOST_GRAPHS, MOST_IMAGES, Replayed


@pytest.fixture
def recorded(monkeypatch) -> list[tuple]:
    """What was recorded: shapes, and whether with a gradient; replays are plain calls."""
    found: list[tuple] = []

    def record(function, tensors, needs_gradient):
        found.append((tuple(tensors[0].shape), needs_gradient))
        return function

    monkeypatch.setattr(graphs, "record", record)
    return found


def test_sizes_that_keep_coming_are_recorded_once(recorded):
    double = Replayed(lambda x: 2 * x)
    for _ in range(CALLS_BEFORE):
        assert torch.equal(double(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert not recorded
    for _ in range(3):
        assert torch.equal(double(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert recorded == [((2, 3), False)]


def test_a_gradient_is_another_recording(recorded):
    double = Replayed(lambda x: 2 * x)
    x = torch.ones(2, 3, requires_grad=True)
    for _ in range(CALLS_BEFORE + 1):
        double(x)
        with torch.no_grad():
            double(x)
    assert recorded == [((2, 3), True), ((2, 3), False)]


def test_large_batches_and_many_sizes_are_called_as_they_are(recorded):
    double = Replayed(lambda x: 2 * x)
    for size in (MOST_IMAGES + 1, *range(1, MOST_GRAPHS + 3)):
        for _ in range(CALLS_BEFORE + 1):
            assert len(double(torch.ones(size, 3))) == size
    assert [shape[0] for shape, _ in recorded] == list(range(1, MOST_GRAPHS + 1))


def test_what_cannot_be_recorded_is_told_and_called(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", fail)
    double = Replayed(lambda x: 2 * x)
    for _ in range(CALLS_BEFORE):
        double(torch.ones(1))
    with pytest.warns(UserWarning, match="not permitted when stream is capturing; prior.graphs=false"):
        assert double(torch.ones(1)).item() == 2
    assert double(torch.ones(1)).item() == 2  # and not told again: warnings are errors here


def test_a_cpu_has_no_graphs(folder):
    assert load_prior(PriorConfig(path=str(folder))).graphs is False
    with pytest.raises(ValueError, match="prior.graphs=true needs a GPU"):
        load_prior(PriorConfig(path=str(folder), graphs=True))
    with pytest.raises(ValueError, match="prior.graphs replays a denoiser that stays"):
        PriorConfig(path=str(folder), graphs=True, offload=True)
