"""How many field evaluations are held at once, by the memory there is; no CUDA device is needed."""

from __future__ import annotations

import pytest
import torch

from amortized.rendering import RendererConfig
from amortized.rendering.chunks import BYTES, MOST, USUAL, evaluations_at_once

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def free(monkeypatch):
    """As if a GPU had so many bytes free, and PyTorch held others that it does not use."""

    def have(num_bytes: int, kept: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (num_bytes, 80 * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept + 2**30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)

    return have


def test_what_is_set_is_taken(free):
    free(2**40)
    for device in (CPU, CUDA):
        for training in (True, False):
            assert evaluations_at_once(1000, device, training=training) == 1000


def test_a_gpu_s_chunks_follow_its_free_memory(free):
    assert RendererConfig().chunk is None
    free(4 * 2**30)
    assert evaluations_at_once(None, CUDA, training=False) == 2**30 // BYTES
    free(3 * 2**30, kept=2**30)  # what PyTorch keeps is free for the next render
    assert evaluations_at_once(None, CUDA, training=False) == 2**30 // BYTES
    free(2**40)
    assert evaluations_at_once(None, CUDA, training=False) == MOST
    free(0)
    assert 0 < evaluations_at_once(None, CUDA, training=False) < USUAL


def test_elsewhere_chunks_are_as_ever(free):
    free(2**40)
    assert evaluations_at_once(None, CPU, training=False) == USUAL == 2**18
    # A step reads its lattice in chunks: what is free differs from step to step, and asking waits.
    assert evaluations_at_once(None, CUDA, training=True) == USUAL
