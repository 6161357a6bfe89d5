"""The depth at which splats have absorbed half of a pixel's light: that of the surface in an image."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.rendering.splats.pairs import MAX_PAIRS, boxes_of, pairs_in, row_ranges
from amortized.rendering.splats.projection import project, ray_lengths
from amortized.types import Cameras, SplatScene


@torch.no_grad()
def median_depths(scene: SplatScene, cameras: Cameras, height: int, width: int) -> Tensor:
    """Return distances along the rays [P, V, H, W]: of the splat that halves the light, or inf without one.

    With PyTorch, on any device.
    """
    num_prompts, num_views = cameras.fovy_deg.shape
    projection = project(scene, cameras, height, width, antialias=scene.antialias)
    boxes, depths = boxes_of(projection, height, width), projection.depths.flatten()
    strips = []
    num_rows = num_prompts * num_views * height
    limit = MAX_PAIRS.get(depths.device.type, MAX_PAIRS["cpu"])
    for rows in row_ranges(boxes, num_rows, limit):
        pairs = pairs_in(rows, boxes, projection, width)
        after = pairs.transmittances * (1 - pairs.alphas)
        halves = ((pairs.transmittances > 0.5) & (after <= 0.5)).nonzero().squeeze(1)  # one per pixel, if any
        strip = depths.new_full(((rows[1] - rows[0]) * width,), torch.inf)
        strip[pairs.pixels[halves].long()] = depths[pairs.splats[halves].long()]
        strips.append(strip)
    pixels = torch.cat(strips).view(num_prompts, num_views, height, width)
    return pixels * ray_lengths(cameras, height, width)
