"""Exact signed distances of the eight solids, in local coordinates (z up, centered at the origin).

Every function takes points [..., 3] and returns exact Euclidean distances [...], negative inside. Each solid
fits into the ball of radius 0.82.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CUBE_HALF = 0.42
SPHERE_RADIUS = 0.56
CYLINDER_RADIUS, CYLINDER_HALF = 0.42, 0.48
CONE_RADIUS, CONE_HALF = 0.55, 0.55
TORUS_MAJOR, TORUS_MINOR = 0.47, 0.19
PYRAMID_HALF, PYRAMID_HALF_HEIGHT = 0.46, 0.48
CAPSULE_RADIUS, CAPSULE_HALF = 0.27, 0.38
OCTAHEDRON_RADIUS = 0.72


def cube(p: Tensor) -> Tensor:
    q = p.abs() - CUBE_HALF
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)


def sphere(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - SPHERE_RADIUS


def cylinder(p: Tensor) -> Tensor:
    q = torch.stack([_radius(p) - CYLINDER_RADIUS, p[..., 2].abs() - CYLINDER_HALF], dim=-1)
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)


def cone(p: Tensor) -> Tensor:
    """Apex up. By symmetry, the distance to a right triangle in the (radius, z) half-plane."""
    r, z = _radius(p), p[..., 2]
    height = 2 * CONE_HALF
    # Slanted edge from the rim (CONE_RADIUS, -CONE_HALF) to the apex (0, CONE_HALF).
    along_r, along_z = -CONE_RADIUS, height
    from_r, from_z = r - CONE_RADIUS, z + CONE_HALF
    t = ((from_r * along_r + from_z * along_z) / (along_r**2 + along_z**2)).clamp(0, 1)
    slant = torch.hypot(from_r - t * along_r, from_z - t * along_z)
    base = torch.hypot((r - CONE_RADIUS).clamp_min(0), from_z)
    outside_slant = (from_r * height + from_z * CONE_RADIUS) > 0
    inside = ~outside_slant & (from_z > 0)
    distance = torch.minimum(slant, base)
    return torch.where(inside, -distance, distance)


def torus(p: Tensor) -> Tensor:
    return torch.hypot(_radius(p) - TORUS_MAJOR, p[..., 2]) - TORUS_MINOR


def pyramid(p: Tensor) -> Tensor:
    """Square base, apex up. By symmetry, points are folded into the wedge of the face toward +x."""
    x, y, z = p[..., 0].abs(), p[..., 1].abs(), p[..., 2]
    x, y = torch.maximum(x, y), torch.minimum(x, y)
    half, top = PYRAMID_HALF, PYRAMID_HALF_HEIGHT
    folded = torch.stack([x, y, z], dim=-1)
    face = _triangle_distance(folded, (0.0, 0.0, top), (half, -half, -top), (half, half, -top))
    base = torch.stack([(x - half).clamp_min(0), (y - half).clamp_min(0), z + top], dim=-1).norm(dim=-1)
    inside = (z > -top) & (2 * top * (x - half) + half * (z + top) < 0)
    distance = torch.minimum(face, base)
    return torch.where(inside, -distance, distance)


def capsule(p: Tensor) -> Tensor:
    return torch.hypot(_radius(p), (p[..., 2].abs() - CAPSULE_HALF).clamp_min(0)) - CAPSULE_RADIUS


def octahedron(p: Tensor) -> Tensor:
    q = p.abs()
    r = OCTAHEDRON_RADIUS
    distance = _triangle_distance(q, (r, 0.0, 0.0), (0.0, r, 0.0), (0.0, 0.0, r))
    return torch.where(q.sum(-1) < r, -distance, distance)


def _radius(p: Tensor) -> Tensor:
    """Distance [...] from the z axis."""
    return torch.hypot(p[..., 0], p[..., 1])


def _triangle_distance(p: Tensor, *corners: tuple[float, float, float]) -> Tensor:
    """Unsigned distance [...] from points [..., 3] to a triangle: to its plane or to its nearest edge."""
    a, b, c = (torch.tensor(corner, dtype=p.dtype, device=p.device) for corner in corners)
    normal = torch.linalg.cross(b - a, c - a)
    normal = normal / normal.norm()
    outside = torch.zeros(p.shape[:-1], dtype=torch.bool, device=p.device)
    nearest_edge = torch.full(p.shape[:-1], torch.inf, dtype=p.dtype, device=p.device)
    for start, end in ((a, b), (b, c), (c, a)):
        edge, offset = end - start, p - start
        outside |= (offset * torch.linalg.cross(edge, normal)).sum(-1) > 0
        t = ((offset @ edge) / edge.dot(edge)).clamp(0, 1)
        nearest_edge = torch.minimum(nearest_edge, (offset - t[..., None] * edge).norm(dim=-1))
    return torch.where(outside, nearest_edge, ((p - a) @ normal).abs())


SOLIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "cube": cube,
    "sphere": sphere,
    "cylinder": cylinder,
    "cone": cone,
    "torus": torus,
    "pyramid": pyramid,
    "capsule": capsule,
    "octahedron": octahedron,
}

# Half extents (along x and y, along z), for placing two solids next to each other.
SPANS: dict[str, tuple[float, float]] = {
    "cube": (CUBE_HALF, CUBE_HALF),
    "sphere": (SPHERE_RADIUS, SPHERE_RADIUS),
    "cylinder": (CYLINDER_RADIUS, CYLINDER_HALF),
    "cone": (CONE_RADIUS, CONE_HALF),
    "torus": (TORUS_MAJOR + TORUS_MINOR, TORUS_MINOR),
    "pyramid": (PYRAMID_HALF, PYRAMID_HALF_HEIGHT),
    "capsule": (CAPSULE_RADIUS, CAPSULE_RADIUS + CAPSULE_HALF),
    "octahedron": (OCTAHEDRON_RADIUS, OCTAHEDRON_RADIUS),
}

# The x at which a ray from the front (+x, height 0) enters the solid: the center of a front mark.
FRONT_X: dict[str, float] = {
    "cube": CUBE_HALF,
    "sphere": SPHERE_RADIUS,
    "cylinder": CYLINDER_RADIUS,
    "cone": CONE_RADIUS / 2,
    "torus": TORUS_MAJOR + TORUS_MINOR,
    "pyramid": PYRAMID_HALF / 2,
    "capsule": CAPSULE_RADIUS,
    "octahedron": OCTAHEDRON_RADIUS,
}
