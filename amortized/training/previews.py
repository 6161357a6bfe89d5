"""Preview pictures of a training: one row per prompt, four views each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from amortized.generation import TextTo3D
from amortized.media import save_grid
from amortized.types import Prompt

SIZE = 64  # px
NUM_VIEWS = 4


def render_preview(model: TextTo3D, prompts: Sequence[Prompt]) -> Tensor:
    """Images [NUM_VIEWS * P, SIZE, SIZE, 3] on the CPU, with one prompt in memory at a time."""
    cameras = model.orbit(num_views=NUM_VIEWS)
    rows = [model.images(model.scenes([prompt]), cameras, SIZE).rgb[0] for prompt in prompts]
    return torch.cat(rows).cpu()


def save_preview(path: Path, images: Tensor) -> None:
    """Save preview images as one PNG; more than 16 images are laid out in two columns of prompts."""
    save_grid(path, images, columns=NUM_VIEWS * (1 + (len(images) > 16)))
