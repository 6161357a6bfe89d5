"""The device of these tests: a GPU, or with GPU_TESTS_ON=cpu the CPU, which only checks that they run."""

from __future__ import annotations

import os

import pytest
import torch

from amortized.parallel import World


@pytest.fixture
def device() -> torch.device:
    if os.environ.get("GPU_TESTS_ON", "cuda") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture
def world(device: torch.device) -> World:
    return World(device=device)
