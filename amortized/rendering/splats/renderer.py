"""Rendering of Gaussian splats: P scenes of N splats from V cameras each, in one pass.

Projection as in 3D Gaussian Splatting (Kerbl et al. 2023) with the antialiasing of Mip-Splatting, compositing
front to back in the order of the centers' depths. Conventions and cut-offs are gsplat's, so that both engines
give the same images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from amortized.cameras import camera_rays
from amortized.rendering.backgrounds import check_images
from amortized.rendering.splats.compositing import composite
from amortized.rendering.splats.engines import SplatEngine, render_with_gsplat, splat_engine_on
from amortized.rendering.splats.pairs import MAX_PAIRS, Boxes, boxes_of, expected_pairs, pairs_in, row_ranges
from amortized.rendering.splats.projection import Projection, project, ray_lengths, values_of
from amortized.types import Cameras, Render, ScreenStatistics, SplatScene


def render_splats(
    scene: SplatScene,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    background: Tensor,
    training: bool,
    show_environment: Tensor | None = None,
    want_normal: bool = False,
    engine: SplatEngine = "auto",
    exact: bool = False,
    max_pairs: int | None = None,
) -> Render:
    """Render P scenes of splats from V cameras each; arguments as in `rendering.render`.

    `rgb` is not clamped: it lies in [0, 1] if all colors do. `depth` is the expected distance along the ray,
    times opacity. Normals are the composited shortest axes, of unit length, and zero where nothing is drawn.
    `samples` is None, and `num_evaluations` is the number of (pixel, splat) pairs (0 with gsplat).

    A scene without `antialias` looks too thin or too thick at another resolution than that of training.
    exact: composite every splat in every pixel, without the cut-offs of coverage and transmittance; slow, and
    with PyTorch. max_pairs: bounds memory (None: by device); images do not depend on it.

    On fake tensors, which have no values, the number of pairs is that of a typical object: see
    `expected_pairs`.

    Without `training` no graph is built. Differentiable once, in the scene. Autocast is disabled. A scene
    with a parameter that is not finite, except for logits, gives images that are not finite.

    Raises ValueError if shapes do not match or the engine cannot run.
    """
    num_prompts, num_views = cameras.fovy_deg.shape
    sizes = (num_prompts, num_views, height, width)
    check_images(scene.num_prompts, background, sizes)
    device, dtype = scene.means.device, scene.means.dtype
    with (
        torch.autocast(device.type, enabled=False),
        torch.set_grad_enabled(training and torch.is_grad_enabled()),
    ):
        values = values_of(scene, cameras, want_normal=want_normal)
        measured = scene.statistics if training else None
        projection, boxes = None, None
        if exact or splat_engine_on(device, engine, dtype) == "torch":
            projection = project(scene, cameras, height, width, antialias=scene.antialias)
            boxes = None if is_fake(values) else boxes_of(projection, height, width, exact=exact)
            limit = max_pairs or MAX_PAIRS.get(device.type, MAX_PAIRS["cpu"])
            sums, opacity, num_pairs = _composite_all(
                projection, boxes, values, height, width, exact=exact, max_pairs=limit
            )
            positions = projection.means
        else:
            sums, opacity, info = render_with_gsplat(
                scene, cameras, values, height, width, antialias=scene.antialias
            )
            positions, num_pairs = info["means2d"], 0
            if measured is not None:
                with torch.no_grad():
                    projection = project(scene, cameras, height, width, antialias=scene.antialias)
                boxes = boxes_of(projection, height, width)
        if measured is not None and projection is not None and boxes is not None:
            _measure(measured, projection.radii / height, boxes.visible, positions, (width, height))
        damage = _not_finite(scene)[:, None, None, None]  # [P, 1, 1, 1]
        opacity = opacity + damage
        behind = background[:, :, None, None].to(dtype)  # [P, V, 1, 1, 3]
        if show_environment is not None and scene.background is not None:
            directions = camera_rays(cameras, height, width).directions  # [P, R, 3]
            environment = scene.background(directions).view(*sizes, 3)
            behind = torch.where(show_environment[:, :, None, None, None], environment, behind)
        normal = None
        if want_normal:
            normal = torch.nn.functional.normalize(sums[..., 4:7], dim=-1) + damage[..., None]
        return Render(
            rgb=sums[..., :3] + (1 - opacity)[..., None] * behind,
            opacity=opacity,
            depth=sums[..., 3] * ray_lengths(cameras, height, width) + damage,
            normal=normal,
            num_evaluations=num_pairs,
        )


def _composite_all(
    projection: Projection,
    boxes: Boxes | None,
    values: Tensor,
    height: int,
    width: int,
    *,
    exact: bool,
    max_pairs: int,
) -> tuple[Tensor, Tensor, int]:
    """Return sums [P, V, H, W, C], opacity [P, V, H, W] and the number of pairs, with PyTorch.

    boxes: None for fake tensors.
    """
    num_prompts, num_views = values.shape[:2]
    means, conics = projection.means.reshape(-1, 2), projection.conics.reshape(-1, 3)
    opacities, table = projection.opacities.reshape(-1), values.flatten(0, 2)
    num_rows = num_prompts * num_views * height
    strips, num_pairs = [], 0
    for rows in [(0, num_rows)] if boxes is None else row_ranges(boxes, num_rows, max_pairs):
        if boxes is None:
            pairs = expected_pairs(num_rows * width, values)
        else:
            pairs = pairs_in(rows, boxes, projection, width, exact=exact)
        sums = composite(
            means, conics, opacities, table, pairs, first_row=rows[0], height=height, width=width
        )
        strips.append(sums)
        num_pairs += len(pairs.splats)
    pixels = torch.cat(strips).view(num_prompts, num_views, height, width, -1)
    return pixels[..., :-1], pixels[..., -1], num_pairs


def _not_finite(scene: SplatScene) -> Tensor:
    """Return NaN for each prompt with a parameter that is not finite or overflows, else 0: [P].

    A splat of NaN has no bounding box and would vanish from the image without a trace.
    """
    with torch.no_grad():
        parts = (scene.means.square(), scene.quaternions, (2 * scene.log_scales).exp(), scene.colors)
        finite = [part.isfinite().flatten(1).all(1) for part in parts]
        finite = torch.stack([*finite, ~scene.logits.isnan().any(1)]).all(0)
        return torch.where(finite, 0.0, torch.nan).to(scene.means.dtype)


def _measure(
    statistics: ScreenStatistics, radii: Tensor, visible: Tensor, positions: Tensor, size: tuple[int, int]
) -> None:
    """Add the measures of a render to the statistics; the gradient is added in the backward pass.

    radii: [P, V, N], as shares of the image's height. visible: bool [P, V, N]. positions: [P, V, N, 2] px.
    size: width and height, px.
    """
    with torch.no_grad():
        statistics.visits.add_(visible.sum(1))
        radius = torch.where(visible, radii, 0.0).amax(1)
        statistics.radius.copy_(torch.maximum(statistics.radius, radius))
    half = positions.new_tensor(size) / 2

    def add(gradient: Tensor) -> None:  # [P, V, N, 2], per px
        statistics.gradient.add_((gradient * half).norm(dim=-1).sum(1))

    if positions.requires_grad:
        positions.register_hook(add)
