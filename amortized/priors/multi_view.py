"""Joint denoising of several views: MVDream (arXiv 2308.16512) in Stable Diffusion's format.

MVDream changes the UNet in two ways. Self-attention runs over all views of an object jointly, which adds no
weights. The camera is added to the time embedding, as a class embedding of type "projection" in diffusers. So
a multi-view prior is a folder in diffusers format whose UNet has such an embedding of width 16, plus a file
`multi_view.json`: {"num_views": 4}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from amortized.types import Cameras

CAMERA_WIDTH = 16
VIEWS_FILE = "multi_view.json"


class JointViewAttnProcessor:
    """A diffusers attention processor in which the views of an object attend to each other."""

    def __init__(self, num_views: int) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.num_views, self.inner = num_views, AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """Attend over hidden_states [N, L, width], in which the views of an object are consecutive."""
        joined = hidden_states.unflatten(0, (-1, self.num_views)).flatten(1, 2)
        return self.inner(attn, joined, *arguments, **keywords).view_as(hidden_states)


def join_views(unet: Any, num_views: int) -> None:
    """Make self-attention joint over `num_views` views.

    Raises ValueError if the UNet has no camera embedding.
    """
    config = unet.config
    if config.class_embed_type != "projection" or (
        config.projection_class_embeddings_input_dim != CAMERA_WIDTH
    ):
        raise ValueError(
            f"this prior declares {num_views} views, but its UNet has no camera embedding "
            f"(class_embed_type projection of width {CAMERA_WIDTH}): it is not an MVDream model"
        )
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(JointViewAttnProcessor(num_views))


def read_num_views(path: str, revision: str | None = None, allow_network: bool = False) -> int:
    """Return the number of views that the prior in a folder or Hub id denoises jointly.

    1 without `multi_view.json`; raises ValueError if that file is invalid.
    """
    file = Path(path) / VIEWS_FILE
    if not Path(path).is_dir():
        file = _cached_views_file(path, revision, allow_network)
    if file is None or not file.is_file():
        return 1
    try:
        num_views = json.loads(file.read_text(encoding="utf-8"))["num_views"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} must hold {{"num_views": N}}') from error
    if type(num_views) is not int or num_views < 2:
        raise ValueError(f"{file}: num_views must be an integer of at least 2, got {num_views!r}")
    return num_views


def _cached_views_file(repository: str, revision: str | None, allow_network: bool) -> Path | None:
    """Return the file of a Hub id, from the cache or, if allowed, downloaded; None if there is none."""
    from transformers.utils import cached_file

    try:
        file = cached_file(
            repository,
            VIEWS_FILE,
            revision=revision,
            local_files_only=not allow_network,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError:
        return None
    return None if file is None else Path(file)


def camera_vectors(cameras: Cameras) -> Tensor:
    """Return MVDream's camera input: c2w with its position normalized to distance 1, flattened to [N, 16].

    MVDream's world has the same axes as this project's: z up, and objects face +x (azimuth 90 in its code).
    """
    c2w = cameras.c2w.flatten(0, -3).clone()
    position = c2w[:, :3, 3]
    c2w[:, :3, 3] = position / position.norm(dim=1, keepdim=True)
    return c2w.flatten(1)
