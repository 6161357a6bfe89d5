"""Preview pictures of a training: four views of each prompt, with the prompt below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from amortized.generation import TextTo3D
from amortized.media import caption, save_png, tile
from amortized.names import slug
from amortized.types import Prompt

SIZE = 64  # px
NUM_VIEWS = 4


def render_previews(model: TextTo3D, prompts: Sequence[Prompt]) -> Tensor:
    """A captioned strip of views per prompt, [P, H, NUM_VIEWS * SIZE, 3] in [0, 1] on the CPU.

    Holds one prompt's scene in memory at a time.
    """
    cameras = model.orbit(num_views=NUM_VIEWS)
    rows = []
    for prompt in prompts:
        views = model.images(model.scenes([prompt]), cameras, SIZE).rgb[0].cpu()  # [V, SIZE, SIZE, 3]
        strip = views.movedim(0, 1).flatten(1, 2)
        rows.append(torch.cat([strip, caption(prompt.text, strip.shape[1])]))
    return torch.stack(rows)


def overview(rows: Tensor) -> Tensor:
    """All strips in one picture [H, W, 3], in two columns if there are more than four."""
    return tile(rows, columns=1 + (len(rows) > 4))


def save_previews(folder: Path, step: int, prompts: Sequence[Prompt], rows: Tensor) -> Path:
    """Write each prompt's strip as step_NNNNNN-SLUG.png and, of several, an overview as step_NNNNNN.png.

    Returns the path of the overview, or of the only strip. Raises OSError.
    """
    name = f"step_{step:06d}"
    paths = [folder / f"{name}-{slug(prompt.text)}.png" for prompt in prompts]
    for path, row in zip(paths, rows, strict=True):
        save_png(path, row)
    if len(paths) == 1:
        return paths[0]
    save_png(folder / f"{name}.png", overview(rows))
    return folder / f"{name}.png"


def bullets(prompts: Sequence[Prompt]) -> str:
    """The prompts of the previews as a Markdown list, in their order."""
    return "".join(f"- `{' '.join(prompt.text.split()).replace('`', chr(39))}`\n" for prompt in prompts)
