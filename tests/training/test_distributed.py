"""Values that travel between devices and processes."""

from __future__ import annotations

import pytest
import torch

from amortized.cameras import orbit
from amortized.conditioning import TextBank, ViewTextConfig
from amortized.training.distributed import StoppedTogether, World, pinned, to_device
from tests.conditioning.words import LetterEncoder


def test_all_text_of_a_step_can_be_pinned(monkeypatch):
    """Pinning copies with the strides of its source, which fails for rows expanded from one."""

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).copy_(tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    config = ViewTextConfig(perp_neg=True, negatives=("ugly",), negative_weights=(-1.0,))
    cameras = orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40)
    told = TextBank(LetterEncoder(), config).views(["a cube", "a cone"], cameras)
    with pytest.raises(RuntimeError, match="single memory location"):
        told.unconditional.tokens.pin_memory()
    moved = to_device(pinned(told), torch.device("cpu"))
    assert torch.equal(moved.unconditional.tokens, told.unconditional.tokens)
    assert len(moved.negatives) == 3 and torch.equal(moved.negatives[2].pooled, told.negatives[2].pooled)
    assert torch.equal(moved.negative_weights, told.negative_weights)


def test_what_one_process_meets_stops_it():
    def fail() -> None:
        raise OSError(28, "No space left on device", "text/shards/000001.tar")

    World().together(lambda: None)
    with pytest.raises(StoppedTogether, match="No space left on device: 'text/shards/000001.tar'"):
        World().together(fail)
