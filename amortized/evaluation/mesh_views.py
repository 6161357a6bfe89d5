"""Pictures of meshes, unlit: each pixel shows the base color of the nearest triangle at its center."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortized.assets.read_glb import PaintedPart
from amortized.types import Cameras

NEAR = 1e-3  # triangles that reach so close to the camera's plane are left out
MAX_CANDIDATES = 2**22  # pixels in the boxes of the triangles that are drawn at once


@dataclass(frozen=True)
class _Hits:
    """The nearest triangle of N pixels of one image."""

    pixels: Tensor  # [N] int64, row * size + column
    faces: Tensor  # [N] int64
    weights: Tensor  # [N, 3] of the corners, on the triangle


@dataclass(frozen=True)
class _Geometry:
    """All parts as one mesh."""

    vertices: Tensor  # [V, 3] float64
    faces: Tensor  # [F, 3]
    both_sides: Tensor  # [F] bool
    part: Tensor  # [F]
    first_vertex: tuple[int, ...]  # of each part


@torch.no_grad()
def render_parts(
    parts: Sequence[PaintedPart],
    cameras: Cameras,
    size: int,
    *,
    background: float,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Images [V, size, size, 3] in [0, 1] on the CPU, from cameras [1, V]; without antialiasing."""
    geometry = _together(parts, torch.device(device))
    images = []
    for c2w, fovy_deg in zip(cameras.c2w[0].double(), cameras.fovy_deg[0].tolist(), strict=True):
        hits = _nearest(geometry, c2w.to(device), fovy_deg, size)
        image = torch.full((size * size, 3), background, device=device)
        part = geometry.part[hits.faces]
        for number, painted in enumerate(parts):
            own = part == number
            corners = geometry.faces[hits.faces[own]] - geometry.first_vertex[number]
            image[hits.pixels[own]] = _color(painted, corners, hits.weights[own])
        images.append(image.reshape(size, size, 3).cpu())
    return torch.stack(images)


def frame_of_parts(parts: Sequence[PaintedPart]) -> tuple[Tensor, float]:
    """T3Bench's center [3] and half size: the mean of all vertices, and the largest coordinate from it."""
    vertices = torch.from_numpy(np.concatenate([part.vertices for part in parts]))
    center = vertices.mean(0)
    return center.float(), float((vertices - center).abs().max())


def _together(parts: Sequence[PaintedPart], device: torch.device) -> _Geometry:
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)]).tolist()
    counts = torch.tensor([len(part.faces) for part in parts], device=device)
    faces = [part.faces + start for part, start in zip(parts, starts, strict=False)]
    both_sides = torch.tensor([part.both_sides for part in parts], device=device)
    return _Geometry(
        vertices=torch.from_numpy(np.concatenate([part.vertices for part in parts])).to(device),
        faces=torch.from_numpy(np.concatenate(faces)).to(device),
        both_sides=both_sides.repeat_interleave(counts),
        part=torch.arange(len(parts), device=device).repeat_interleave(counts),
        first_vertex=tuple(starts[:-1]),
    )


def _nearest(geometry: _Geometry, c2w: Tensor, fovy_deg: float, size: int) -> _Hits:
    """The triangle that each pixel shows. One that turns its back does not count, unless both sides show."""
    own = (geometry.vertices - c2w[:3, 3]) @ c2w[:3, :3]  # [V, 3], right, up, backward
    depth = -own[:, 2]
    focal = size / (2 * math.tan(math.radians(fovy_deg) / 2))
    flat = focal * own[:, :2] / depth[:, None] * own.new_tensor([1.0, -1.0]) + size / 2  # x, y in pixels
    triangles, depths = flat[geometry.faces], depth[geometry.faces]  # [F, 3, 2], [F, 3]
    area = _cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    # y points down, so that counter-clockwise triangles have a negative area.
    shown = (depths > NEAR).all(1) & ((area < 0) | (geometry.both_sides & (area > 0)))
    low = (triangles.amin(1) - 0.5).ceil().clamp(min=0)
    extent = ((triangles.amax(1) - 0.5).floor().clamp(max=size - 1) - low + 1).clamp(min=0)
    shown &= (extent > 0).all(1) & extent.isfinite().all(1)
    index = shown.nonzero()[:, 0]
    low, extent = low[index].long(), extent[index].long()
    counts = extent.prod(1)

    best = own.new_zeros(size * size)  # 1 / depth
    winner = torch.full((size * size,), -1, dtype=torch.int64, device=own.device)
    weights = own.new_zeros(size * size, 3)
    for chunk in _chunks(counts):
        face = chunk.repeat_interleave(counts[chunk])
        number = torch.arange(len(face), device=own.device)
        number -= (counts[chunk].cumsum(0) - counts[chunk]).repeat_interleave(counts[chunk])
        x = low[face, 0] + number % extent[face, 0]
        y = low[face, 1] + number // extent[face, 0]
        corners, name = triangles[index[face]], index[face]
        a, b, c = corners.unbind(1)
        center = torch.stack([x, y], 1) + 0.5
        v, w = _cross(center - a, c - a) / area[name], _cross(b - a, center - a) / area[name]
        screen = torch.stack([1 - v - w, v, w], 1)
        near = screen / depths[name]  # [N, 3]: linear on the screen, unlike the depth
        inverse = near.sum(1)
        pixel = y * size + x
        inside = (screen >= -1e-9).all(1) & (inverse > best[pixel])
        pixel, inverse, name, near = pixel[inside], inverse[inside], name[inside], near[inside]
        nearest = best.scatter_reduce(0, pixel, inverse, "amax")
        chosen = (inverse == nearest[pixel]).nonzero()[:, 0]
        # Of several at the same depth, as on a shared edge, the first.
        first = torch.full_like(winner, len(pixel)).scatter_reduce(0, pixel[chosen], chosen, "amin")
        found = (first < len(pixel)).nonzero()[:, 0]
        first = first[found]
        best, winner[found] = nearest, name[first]
        weights[found] = near[first] / inverse[first, None]
    pixels = (winner >= 0).nonzero()[:, 0]
    return _Hits(pixels, winner[pixels], weights[pixels])


def _chunks(counts: Tensor) -> list[Tensor]:
    """The triangles in parts with at most MAX_CANDIDATES pixels in their boxes, or a single triangle."""
    if not len(counts):
        return []
    number = (counts.cumsum(0) - counts) // MAX_CANDIDATES
    sizes: Any = number.unique_consecutive(return_counts=True)[1].tolist()
    return list(torch.arange(len(counts), device=counts.device).split(sizes))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _color(part: PaintedPart, corners: Tensor, weights: Tensor) -> Tensor:
    """sRGB colors [N, 3] at points of a part: its vertices [N, 3] and their weights [N, 3]."""
    device = weights.device

    def at(values: np.ndarray) -> Tensor:
        return (torch.from_numpy(values).to(device)[corners] * weights[..., None]).sum(1)

    light = torch.from_numpy(part.factor).to(device).expand(len(corners), 3)
    if part.colors is not None:
        light = light * at(part.colors)
    if part.texture is not None and part.uv is not None:
        light = light * _to_linear(_sampled(torch.from_numpy(part.texture).to(device), at(part.uv)))
    return _to_srgb(light).float()


def _sampled(texture: Tensor, uv: Tensor) -> Tensor:
    """Bilinear colors [N, 3] in [0, 1] of a texture [H, W, 3] uint8 that repeats, at uv [N, 2]."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    left, top = x.floor(), y.floor()
    color = torch.zeros(len(uv), 3, dtype=uv.dtype, device=uv.device)
    for dx in (0, 1):
        for dy in (0, 1):
            share = (1 - (x - left - dx).abs()) * (1 - (y - top - dy).abs())
            texel = texture[((top + dy) % height).long(), ((left + dx) % width).long()]
            color += share[:, None] * texel
    return color / 255


def _to_linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _to_srgb(light: Tensor) -> Tensor:
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=1e-9) ** (1 / 2.4) - 0.055)
