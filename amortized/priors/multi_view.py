"""Joint denoising of several views: MVDream (arXiv 2308.16512) in Stable Diffusion's format.

MVDream changes the UNet in two ways. Self-attention runs over all views of an object jointly, which adds no
weights. The camera is added to the time embedding, as a class embedding of type "projection" in diffusers. So
a multi-view prior is a folder in diffusers format whose UNet has such an embedding of width 16, plus a file
`multi_view.json`: {"num_views": 4}.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amortized.model_folders.prior_folder import VIEWS_FILE
from amortized.types import Cameras

CAMERA_WIDTH = 16


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
            f"{VIEWS_FILE} of this prior declares {num_views} views, but its UNet has no camera embedding "
            f"(class_embed_type projection of width {CAMERA_WIDTH}): it is not an MVDream model"
        )
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(JointViewAttnProcessor(num_views))


def camera_vectors(cameras: Cameras) -> Tensor:
    """Return MVDream's camera input: c2w with its position normalized to distance 1, flattened to [N, 16].

    MVDream's world has the same axes as this project's: z up, and objects face +x (azimuth 90 in its code).
    """
    c2w = cameras.c2w.flatten(0, -3).clone()
    position = c2w[:, :3, 3]
    c2w[:, :3, 3] = position / position.norm(dim=1, keepdim=True)
    return c2w.flatten(1)
