"""Counter-based randomness: every draw is a pure function of a key such as (seed, purpose, step, index).

No draw advances the stream of another, so results do not depend on the number of processes, the order of
calls or interruptions, and checkpoints need no generator state.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """Hash integers and names to a 63-bit seed, the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded with the key.

    Numbers are drawn on the CPU and copied, so that a seed gives the same experiment on every device.
    """
    return torch.Generator().manual_seed(derive_seed(*key))


def uniform(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Draw uniform numbers in [0, 1) of this shape, float32 on the CPU, determined by the key."""
    return torch.rand(shape, generator=generator_for(*key))


def normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Draw standard normal numbers of this shape, float32 on the CPU, determined by the key."""
    return torch.randn(shape, generator=generator_for(*key))
