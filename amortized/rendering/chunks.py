"""How many field evaluations are held at once where no gradient is wanted."""

from __future__ import annotations

import torch

USUAL = 2**18  # in CPU memory, and of a training step's lattice
LEAST, MOST = 2**14, 2**22  # on a GPU; more than MOST gains nothing
SHARE = 4  # a fourth of what is free
# Held for one evaluation, renderer and field together, in float32. Measured at default widths: Hyper-iNGP and
# 3DConv-net 654, Triplane-Transformer 910 (less with a lattice: 250 and 339).
BYTES = 1024


def evaluations_at_once(chunk: int | None, device: torch.device, *, training: bool) -> int:
    """`chunk` where it is set; else what a GPU has room for. Results do not depend on it."""
    if chunk is not None:
        return chunk
    if device.type != "cuda" or training:
        return USUAL
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # to be used again
    return min(max((free + kept) // (SHARE * BYTES), LEAST), MOST)
