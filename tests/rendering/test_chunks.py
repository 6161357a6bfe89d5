"""The number of field evaluations at once, by free memory; needs no CUDA device."""

from __future__ import annotations

import pytest
import torch

from amortized.rendering import RendererConfig
from amortized.rendering.chunks import BYTES_PER_EVALUATION, DEFAULT_CHUNK, MAX_CHUNK, chunk_size

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def set_free(monkeypatch):
    """Set the GPU memory that is free, and that PyTorch has reserved without using it."""

    def set_free(num_bytes: int, reserved: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (num_bytes, 80 * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved + 2**30)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)

    return set_free


def test_setting_wins(set_free):
    set_free(2**40)
    for device in (CPU, CUDA):
        for training in (True, False):
            assert chunk_size(1000, device, training=training) == 1000


def test_gpu_chunks_follow_free_memory(set_free):
    assert RendererConfig().chunk is None
    set_free(4 * 2**30)
    assert chunk_size(None, CUDA, training=False) == 2**30 // BYTES_PER_EVALUATION
    set_free(3 * 2**30, reserved=2**30)  # PyTorch reuses reserved memory for the next render
    assert chunk_size(None, CUDA, training=False) == 2**30 // BYTES_PER_EVALUATION
    set_free(2**40)
    assert chunk_size(None, CUDA, training=False) == MAX_CHUNK
    set_free(0)
    assert 0 < chunk_size(None, CUDA, training=False) < DEFAULT_CHUNK


def test_default_on_cpu_and_in_training(set_free):
    set_free(2**40)
    assert chunk_size(None, CPU, training=False) == DEFAULT_CHUNK == 2**18
    # In a training step, free memory varies from step to step, and querying it blocks the host.
    assert chunk_size(None, CUDA, training=True) == DEFAULT_CHUNK
