"""Copies between host and device."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from amortized import transfer
from amortized.cameras import orbit
from amortized.conditioning import TextBank, ViewTextConfig
from tests.conditioning.letter_encoder import LetterEncoder

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    image: torch.Tensor
    rows: tuple[torch.Tensor, ...]
    ids: list[int]


def fake_pin(tensor: torch.Tensor) -> torch.Tensor:
    """Like the real `pin_memory`: keeps strides, and fails if elements share memory."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def test_the_text_of_a_step_can_be_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", fake_pin)
    config = ViewTextConfig(perp_neg=True, negatives=("ugly",), negative_weights=(-1.0,))
    cameras = orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40)
    text = TextBank(LetterEncoder(), config).prior_text(["a cube", "a cone"], cameras)
    with pytest.raises(RuntimeError, match="single memory location"):
        text.unconditional.tokens.pin_memory()
    moved = transfer.to_device(transfer.pin(text), CPU)
    assert torch.equal(moved.unconditional.tokens, text.unconditional.tokens)
    assert len(moved.negatives) == 3 and torch.equal(moved.negatives[2].pooled, text.negatives[2].pooled)
    assert torch.equal(moved.negative_weights, text.negative_weights)


def test_other_values_are_returned_unchanged():
    batch = Batch(image=torch.rand(2), rows=(torch.arange(3),), ids=[1, 2])
    moved = transfer.to_device(batch, "meta")
    assert moved.ids is batch.ids and moved.image.is_meta and moved.rows[0].is_meta


def test_an_expanded_row_is_copied_once():
    sent: list[torch.Tensor] = []

    def copy(source: torch.Tensor) -> torch.Tensor:
        sent.append(source)
        return source.clone()

    rows = torch.rand(1, 5).expand(4, 5)
    copied = transfer._map_unexpanded(rows, copy)
    assert [source.shape for source in sent] == [(1, 5)]
    assert torch.equal(copied, rows) and copied.untyped_storage().nbytes() == 5 * 4


def test_a_constant_is_created_once_per_dtype():
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    first = transfer.constant(((1.0, 2.0), (3.0, 4.0)), single)
    assert torch.equal(first, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert transfer.constant(((1.0, 2.0), (3.0, 4.0)), single) is first
    assert transfer.constant(((1.0, 2.0), (3.0, 4.0)), double).dtype == torch.float64
    assert transfer.index((2, 0), single).tolist() == [2, 0]


def test_readback_returns_the_numbers():
    assert transfer.Readback(torch.tensor([1.0, 2.5])).tolist() == [1.0, 2.5]


def test_a_side_stream_does_nothing_on_a_cpu():
    with transfer.side_stream(CPU):
        assert torch.rand(2).shape == (2,)
