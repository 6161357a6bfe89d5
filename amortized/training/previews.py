"""Previews of a training: four views of each prompt, their scores, and pictures with the prompt below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from amortized.evaluation import Gallery, Scorer, text_scores
from amortized.generation import TextTo3D
from amortized.media import caption, save_png, tile
from amortized.monitoring import StepMonitor
from amortized.names import slug
from amortized.types import Prompt

SIZE = 64  # px
NUM_VIEWS = 4


def render_previews(model: TextTo3D, prompts: Sequence[Prompt]) -> Tensor:
    """Views of each prompt, [P, NUM_VIEWS, SIZE, SIZE, 3] in [0, 1] on the CPU.

    Holds one prompt's scene in memory at a time.
    """
    cameras = model.orbit(num_views=NUM_VIEWS)
    return torch.cat([model.images(model.scenes([prompt]), cameras, SIZE).rgb.cpu() for prompt in prompts])


def report_previews(
    monitor: StepMonitor,
    folder: Path,
    step: int,
    prompts: Sequence[Prompt],
    views: Tensor,
    scorer: Scorer | None = None,
) -> None:
    """Write the views [P, V, H, W, 3] of a step's preview as pictures, and with a scorer log their scores.

    A failure is reported, and raises nothing.
    """
    if scorer is not None:
        with monitor.best_effort("the scores of the previews", Exception):
            monitor.preview_scores(step, score_previews(scorer, prompts, views))
    rows = strips(prompts, views)
    with monitor.best_effort("previews"):
        monitor.preview(save_previews(folder, step, prompts, rows))
    monitor.picture("preview", overview(rows))


def score_previews(scorer: Scorer, prompts: Sequence[Prompt], views: Tensor) -> dict[str, float]:
    """Means over views [P, V, H, W, 3], then over prompts: `clip_similarity`, the cosine of image and text.

    With several texts also `recall_at_1`: the share of views that match their text best among these prompts.
    """
    gallery = Gallery(prompt.text for prompt in prompts)
    column = torch.tensor([gallery.column(prompt.text) for prompt in prompts])
    images = scorer.encode_images(views.flatten(0, 1))  # [P * V, D]
    similarity, recall = text_scores(images, scorer.encode_texts(gallery.texts), column)
    scores = {"clip_similarity": float(similarity.mean())}
    return scores | ({"recall_at_1": float(recall.mean())} if len(gallery) > 1 else {})


def strips(prompts: Sequence[Prompt], views: Tensor) -> Tensor:
    """A captioned strip per prompt of its views [P, V, H, W, 3]: [P, H + caption, V * W, 3]."""
    rows = views.movedim(1, 2).flatten(2, 3)  # [P, H, V * W, 3]
    captions = [caption(prompt.text, rows.shape[2]) for prompt in prompts]
    return torch.cat([rows, torch.stack(captions)], dim=1)


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
