"""The number of field evaluations per chunk when no gradient is needed."""

from __future__ import annotations

import torch

DEFAULT_CHUNK = 2**18  # on a CPU, and for the lattice of a training step
MIN_CHUNK, MAX_CHUNK = 2**14, 2**22  # on a GPU; larger chunks are not faster
MEMORY_FRACTION = 4  # use 1/4 of the free memory
# Memory per evaluation of renderer and field together, in float32. Measured at default widths: 654 for
# Hyper-iNGP and 3DConv-net, 910 for Triplane-Transformer (with a lattice 250 and 339).
BYTES_PER_EVALUATION = 1024


def chunk_size(chunk: int | None, device: torch.device, *, training: bool) -> int:
    """Return `chunk` if set, else what fits the GPU's free memory. Results do not depend on it."""
    if chunk is not None:
        return chunk
    if device.type != "cuda" or training:
        return DEFAULT_CHUNK
    free, _ = torch.cuda.mem_get_info(device)
    # PyTorch's allocator reuses memory that it has reserved but not allocated.
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(max((free + cached) // (MEMORY_FRACTION * BYTES_PER_EVALUATION), MIN_CHUNK), MAX_CHUNK)
