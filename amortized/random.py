"""Counter-based randomness: every draw is a pure function of (seed, step, index, purpose).

No stream is ever advanced by earlier draws, so results do not depend on the number of processes,
the order of calls, or where a run was interrupted: resuming needs no saved generator state.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a tuple of integers and names; equal on every machine and Python."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator whose whole stream is determined by the key.

    Draws are made on the CPU and copied, so that one seed gives one experiment on every device.
    """
    return torch.Generator().manual_seed(derive_seed(*key))


def uniform(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Uniform numbers in [0, 1), float32 on the CPU, determined by the key."""
    return torch.rand(shape, generator=generator_for(*key))


def normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Standard normal numbers, float32 on the CPU, determined by the key."""
    return torch.randn(shape, generator=generator_for(*key))
