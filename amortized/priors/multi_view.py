"""Several views of one object denoised together: MVDream (arXiv 2308.16512) in Stable Diffusion's format.

The UNet is an ordinary one with two changes: self-attention runs over all views of an object at once,
which adds no weights, and the camera joins the time embedding, which diffusers calls a class embedding
of type "projection". So a multi-view prior is a folder in diffusers format whose UNet has such an embedding
of width 16, and beside it `multi_view.json`: {"num_views": 4}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from amortized.types import Cameras

CAMERA_WIDTH = 16
FILE = "multi_view.json"


class JointViews:
    """An attention processor that lets the views of an object attend to each other."""

    def __init__(self, num_views: int) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.num_views, self.inner = num_views, AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """hidden_states [N, L, width], the views of an object being neighbours."""
        joined = hidden_states.unflatten(0, (-1, self.num_views)).flatten(1, 2)
        return self.inner(attn, joined, *arguments, **keywords).view_as(hidden_states)


def join_views(unet: Any, num_views: int) -> None:
    """Let self-attention run over `num_views` views; raises ValueError for a UNet without cameras."""
    config = unet.config
    if config.class_embed_type != "projection" or (
        config.projection_class_embeddings_input_dim != CAMERA_WIDTH
    ):
        raise ValueError(
            f"this prior says that it has {num_views} views, but its UNet has no camera embedding "
            f"(class_embed_type projection of width {CAMERA_WIDTH}): it is no MVDream"
        )
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(JointViews(num_views))


def views_of(path: str, revision: str | None = None, allow_network: bool = False) -> int:
    """Views that the prior in a folder, or of a Hub id, denoises together."""
    file = Path(path) / FILE
    if not Path(path).is_dir():
        file = _fetched(path, revision, allow_network)
    if file is None or not file.is_file():
        return 1
    try:
        num_views = json.loads(file.read_text())["num_views"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} must hold {{"num_views": N}}') from error
    if type(num_views) is not int or num_views < 2:
        raise ValueError(f"{file}: num_views must be an integer of at least 2, got {num_views!r}")
    return num_views


def _fetched(repository: str, revision: str | None, allow_network: bool) -> Path | None:
    """The file of a Hub id, from this machine's cache or, if allowed, from the Hub; None if it has none."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            repository, FILE, revision=revision, local_files_only=not allow_network,
            _raise_exceptions_for_missing_entries=False,
        )  # fmt: skip
    except OSError:
        return None
    return None if found is None else Path(found)


def camera_vectors(cameras: Cameras) -> Tensor:
    """Cameras as MVDream reads them: c2w with its position at distance 1, flattened [N, 16].

    Its world is ours: z up, and the front of what it draws at +x (which its own code calls azimuth 90).
    """
    c2w = cameras.c2w.flatten(0, -3).clone()
    position = c2w[:, :3, 3]
    c2w[:, :3, 3] = position / position.norm(dim=1, keepdim=True)
    return c2w.flatten(1)
