"""Splat scenes for tests, and their images by a dense twin: every splat in every pixel, by autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amortized.rendering import render_splats
from amortized.splats import NAMES, rotation_matrices
from amortized.types import Cameras, Render, SplatScene
from tests.rendering import scenes


def shell(num_prompts: int, num_splats: int, *, seed: int = 0) -> SplatScene:
    """Return splats of random shape, color and opacity near a sphere of radius 0.5."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(num_prompts, num_splats, *shape, generator=rng, dtype=torch.float64)

    spacing = 0.5 * math.sqrt(4 * math.pi / num_splats)
    tensors = {
        "means": 0.5 * torch.nn.functional.normalize(draw(3), dim=-1),
        "quaternions": draw(4),
        "log_scales": math.log(0.7 * spacing) + 0.4 * draw(3),
        "logits": 0.8 + 0.5 * draw(),
        "colors": draw(3),
    }
    return SplatScene(**tensors, bounding_radius=1.0)


def tensors_of(scene: SplatScene) -> list[Tensor]:
    return [getattr(scene, name) for name in NAMES]


def with_tensors(scene: SplatScene, *tensors: Tensor) -> SplatScene:
    return replace(scene, **dict(zip(NAMES, tensors, strict=True)))


def needing_grad(scene: SplatScene) -> SplatScene:
    return with_tensors(scene, *(tensor.detach().clone().requires_grad_() for tensor in tensors_of(scene)))


def rows_of(scene: SplatScene, rows: slice) -> SplatScene:
    return with_tensors(scene, *(tensor[rows] for tensor in tensors_of(scene)))


def cameras_for(num_prompts: int, num_views: int, dtype: torch.dtype = torch.float64) -> Cameras:
    cameras = scenes.varied_cameras(num_prompts, num_views)
    return Cameras(**{name: value.to(dtype) for name, value in vars(cameras).items()})


def images(scene: SplatScene, cameras: Cameras, size: int | tuple[int, int], **settings: Any) -> Render:
    """Render in training over the gray 0.25."""
    height, width = (size, size) if isinstance(size, int) else size
    background = torch.full((*cameras.fovy_deg.shape, 3), 0.25, dtype=scene.means.dtype)
    if "antialias" in settings:
        scene = replace(scene, antialias=settings.pop("antialias"))
    return render_splats(
        scene, cameras, height, width, **{"background": background, "training": True, **settings}
    )


def stacked(render: Render) -> Tensor:
    """Return rgb, opacity, depth and, if there, normals: [P, V, H, W, 5 or 8]."""
    parts = [render.rgb, render.opacity[..., None], render.depth[..., None]]
    return torch.cat([*parts, *([] if render.normal is None else [render.normal])], dim=-1)


def dense(scene: SplatScene, cameras: Cameras, size: int, *, antialias: bool) -> Tensor:
    """Return `stacked` images by the textbook: one prompt, view and splat at a time, without cut-offs."""
    rows = []
    for p in range(scene.num_prompts):
        for v in range(cameras.fovy_deg.shape[1]):
            rows.append(_dense(scene.select(p), cameras.c2w[p, v], cameras.fovy_deg[p, v], size, antialias))
    return torch.stack(rows).view(*cameras.fovy_deg.shape, size, size, 5)


def _dense(scene: SplatScene, c2w: Tensor, fovy_deg: Tensor, size: int, antialias: bool) -> Tensor:
    focal = size / 2 / math.tan(math.radians(float(fovy_deg)) / 2)
    centers = torch.arange(size, dtype=torch.float64) + 0.5
    pixel_y, pixel_x = torch.meshgrid(centers, centers, indexing="ij")
    distance = ((pixel_x - size / 2) ** 2 + (pixel_y - size / 2) ** 2 + focal**2).sqrt() / focal
    right, up, backward = c2w[:3, :3].unbind(-1)
    view = torch.stack([right, -up, -backward])
    camera = (scene.means[0] - c2w[:3, 3]) @ view.T
    light = torch.ones(size, size, dtype=torch.float64)
    rgb, opacity, depth = torch.zeros(size, size, 3, dtype=torch.float64), 0 * light, 0 * light
    for k in camera[:, 2].argsort().tolist():
        x, y, z = camera[k]
        jacobian = torch.stack(
            [
                torch.stack([focal / z, 0 * z, -focal * x / z**2]),
                torch.stack([0 * z, focal / z, -focal * y / z**2]),
            ]
        )
        axes = rotation_matrices(scene.quaternions[0, k]) * scene.log_scales[0, k].exp()
        exact = jacobian @ view @ axes @ axes.T @ view.T @ jacobian.T
        blurred = exact + 0.3 * torch.eye(2, dtype=torch.float64)
        covered = torch.sigmoid(scene.logits[0, k])
        if antialias:
            covered = covered * (torch.linalg.det(exact) / torch.linalg.det(blurred)).sqrt()
        offset = torch.stack([pixel_x - focal * x / z - size / 2, pixel_y - focal * y / z - size / 2], dim=-1)
        power = (offset @ torch.linalg.inv(blurred) * offset).sum(-1)
        alpha = (covered * torch.exp(-power / 2)).clamp(max=0.999)
        color = (scene.colors[0, k] * 0.28209479177387814 + 0.5).clamp(min=0)
        rgb = rgb + (light * alpha)[..., None] * color
        opacity, depth = opacity + light * alpha, depth + light * alpha * z
        light = light * (1 - alpha)
    rgb = rgb + 0.25 * (1 - opacity)[..., None]
    return torch.cat([rgb, opacity[..., None], (depth * distance)[..., None]], dim=-1)
