"""Volume rendering of signed distance fields (VolSDF, Yariv et al. 2021), for P scenes of V views.

A ray is cut into intervals; each contributes by the density at one position inside it. Where
`num_fine` > 0, a first look without gradient at `num_coarse` intervals decides which rays are
worth rendering and where along them the intervals lie; it reads a lattice of distances, made once
for all views of a scene, so that only rendered samples ask the field. Rows of every tensor belong to
one prompt from beginning to end, so prompts cannot mix; prompts with fewer rays to render than the
busiest one are filled up with further rays of their own, which do not count in the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from amortized.cameras import camera_rays
from amortized.rendering.chunks import evaluations_at_once
from amortized.rendering.lattice import distance_lattice, read_lattice
from amortized.rendering.quadrature import (
    compositing_weights,
    even_edges,
    importance_edges,
    laplace_density,
    positions_in,
    sphere_bounds,
    subdivide,
)
from amortized.rendering.shading import ShadingConfig, brightness, normals, sdf_gradient
from amortized.transfer import constant
from amortized.types import Cameras, RaySamples, Render, Scene, SceneWithBackground

# The first look reads distances at the edges of its intervals and takes them as linear between them,
# as they nearly are: so many parts per interval locate the surface at no further reading.
PARTS = 4

# Share of a prompt's rays that training renders even if they look empty: an object that has
# vanished must keep a gradient, and samples near its centre, by which it can be brought back.
LEAST_SHARE = 0.125


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """How finely rays are sampled."""

    num_coarse: int = 64  # intervals of the first look, or of the only pass where num_fine is 0
    num_fine: int = 32  # intervals placed by importance; 0 = one pass over the coarse ones
    lattice: int = 32  # vertices a side of the grid that the first look reads; 0 = it asks the field
    min_optical_depth: float = 1e-3  # rays that look emptier than this show the background
    normal_epsilon: float = 0.01  # reach of the finite difference for normals
    shading: ShadingConfig = field(default_factory=ShadingConfig)
    chunk: int | None = None  # field evaluations held at once outside training; null: by the memory there is

    def __post_init__(self) -> None:
        for name, least in (("num_coarse", 1), ("num_fine", 0), ("lattice", 0), ("chunk", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"renderer {name} must be at least {least}, got {value}")
        if self.lattice == 1:
            raise ValueError("renderer lattice must be 0 (none) or at least 2, got 1")
        if self.min_optical_depth < 0:
            raise ValueError(f"renderer min_optical_depth must be at least 0, got {self.min_optical_depth}")
        if self.normal_epsilon <= 0:
            raise ValueError(f"renderer normal_epsilon must be positive, got {self.normal_epsilon}")

    @property
    def num_samples(self) -> int:
        """Rendered intervals per ray: how many uniform numbers a ray reads."""
        return self.num_fine or self.num_coarse


def render(
    scene: Scene,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    config: RendererConfig,
    background: Tensor,
    sharpness: float | Tensor,
    training: bool,
    u: Tensor | None = None,
    show_environment: Tensor | None = None,
    want_normal: bool = False,
) -> Render:
    """Images of P scenes from V cameras each.

    background: colour [P, V, 3] in [0, 1]. show_environment: which images [P, V] (bool) show the scene's
    own background instead, where it is a `SceneWithBackground`; None = no image. sharpness: k of the Laplace
    density, in 1/length. u: uniform numbers [P, V * H * W, config.num_samples] in [0, 1), one position in
    each interval; None takes the middles.
    Training keeps the graph of all rays and fills `samples` for the rays that were rendered. Otherwise
    no graph is made and rays are rendered chunk by chunk; images do not depend on the chunks, nor on
    which other prompts are in the batch. Normals (unit, or zero where nothing was rendered) cost 4 field
    evaluations per rendered ray and are computed only for shading or where `want_normal` asks.
    Differentiable in the scene and in sharpness, not in the cameras. Autocast is switched off inside:
    a distance in bfloat16 is off by up to 0.004. Where the field is not finite, neither is the image.

    Raises ValueError where sizes do not fit together.
    """
    num_prompts, num_views = cameras.fovy_deg.shape
    _check_inputs(background, u, sharpness, (num_prompts, num_views, height, width), config)
    keep_graph = training and torch.is_grad_enabled()
    with torch.autocast(cameras.c2w.device.type, enabled=False), torch.set_grad_enabled(keep_graph):
        rays = camera_rays(cameras, height, width)
        lattice, num_evaluations = None, 0
        chunk = evaluations_at_once(config.chunk, rays.origins.device, training=training)
        if config.num_fine and config.lattice:
            lattice, num_evaluations = distance_lattice(
                scene, num_prompts, config.lattice, like=rays.origins, chunk=chunk
            )
        look = _RayMarcher(
            scene=scene,
            lattice=lattice,
            sharpness=sharpness,
            config=config,
            want_normal=want_normal or config.shading.kind != "none",
            training=training,
        )
        at_once = chunk // (num_prompts * max(config.num_coarse + 1, config.num_samples, 4))
        step = rays.origins.shape[1] if training else max(1, at_once)
        numbers = repeat(None) if u is None else u.split(step, dim=1)
        chunks = zip(rays.origins.split(step, dim=1), rays.directions.split(step, dim=1), numbers)  # noqa: B905
        parts = [look(*chunk) for chunk in chunks]
        pixels = torch.cat([part.pixels for part in parts], dim=1).unflatten(1, rays.shape)
        rgb, opacity, depth, normal = pixels.split([3, 1, 1, pixels.shape[-1] - 5], dim=-1)
        behind = background[:, :, None, None]
        if show_environment is not None and isinstance(scene, SceneWithBackground):
            own = scene.background(rays.directions).unflatten(1, rays.shape)
            behind = torch.where(show_environment[:, :, None, None, None], own, behind)
        return Render(
            rgb=rgb + (1 - opacity) * behind,
            opacity=opacity.squeeze(-1),
            depth=depth.squeeze(-1),
            normal=normal if want_normal else None,
            samples=parts[0].samples if training else None,
            num_evaluations=num_evaluations + sum(part.num_evaluations for part in parts),
        )


@dataclass(frozen=True, kw_only=True)
class _RayOutput:
    """What came back along R rays of each prompt."""

    pixels: Tensor  # [P, R, 5 or 8]: premultiplied colour, opacity, depth, normal
    samples: RaySamples
    num_evaluations: int


@dataclass(frozen=True, kw_only=True)
class _RayMarcher:
    """One call looks along R rays of each prompt."""

    scene: Scene
    lattice: Tensor | None  # [P, G, G, G] distances, where the first look reads them
    sharpness: float | Tensor
    config: RendererConfig
    want_normal: bool
    training: bool

    def __call__(self, origins: Tensor, directions: Tensor, u: Tensor | None) -> _RayOutput:
        """origins, directions [P, R, 3]; u [P, R, S] or None."""
        num_prompts, num_rays = origins.shape[:2]
        near, far, seen = sphere_bounds(origins, directions, self.scene.bounding_radius)
        # Rays that miss are rendered only to fill up: with length 0, in the ball's centre.
        origins = torch.where(seen[..., None], origins, 0.0)
        num_evaluations = 0
        # A look at all rays in the lattice costs a GPU less than the wait for how many of them hit.
        all_rays = self.lattice is not None and _counting_waits(origins.device)
        index = _all(seen) if all_rays else _compact(seen)  # [P, K]
        if not all_rays:
            origins, directions, near, far, seen = (
                _gather_rays(values, index) for values in (origins, directions, near, far, seen)
            )
        edges = even_edges(near, far, self.config.num_coarse)  # [P, K, S + 1]
        if self.config.num_fine:
            num_evaluations += 0 if self.lattice is not None else edges.numel()
            least = int(LEAST_SHARE * num_rays)
            kept, seen, edges = self._importance_edges(origins, directions, seen, edges, least=least)
            origins, directions, index = (
                _gather_rays(values, kept) for values in (origins, directions, index)
            )

        t = positions_in(edges, None if u is None else _gather_rays(u, index))  # [P, K, S]
        sdf, albedo = self.scene.sdf_and_albedo(_points(origins, directions, t))
        num_evaluations += sdf.numel()
        densities = laplace_density(sdf.view_as(t), self.sharpness)
        weights = compositing_weights(densities, edges.diff(dim=-1)) * seen[..., None]
        opacity = weights.sum(dim=-1, keepdim=True)
        depth = (weights * t).sum(dim=-1, keepdim=True)
        rgb = (weights[:, :, None] @ albedo.unflatten(1, t.shape[1:])).squeeze(2)
        values, gradient = [opacity, depth], None
        if self.want_normal:
            surface = (depth / opacity.clamp(min=1e-12)).detach()
            gradient = sdf_gradient(
                self.scene, _points(origins, directions, surface), self.config.normal_epsilon
            )
            num_evaluations += 4 * surface.numel()
            # Filled-up rays have no surface, and a distance no gradient in the centre: a constant.
            gradient = torch.where(seen[..., None], gradient, constant((0.0, 0.0, 1.0), gradient))
            normal = normals(gradient)
            if self.config.shading.kind != "none":
                rgb = rgb * brightness(normal, self.config.shading)
            values.append(normal * seen[..., None])
        values = torch.cat([rgb, *values], dim=-1)
        pixels = values.new_zeros(num_prompts, num_rays, values.shape[-1])
        pixels = pixels.scatter(1, index[..., None].expand_as(values), values)
        outside = self.scene.bounding_radius
        samples = RaySamples(
            valid=seen,
            directions=directions,
            t_positions=t,
            sdf=torch.where(seen[..., None], sdf.view_as(t), outside),
            weights=weights,
            gradient=gradient,
        )
        return _RayOutput(pixels=pixels, samples=samples, num_evaluations=num_evaluations)

    @torch.no_grad()
    def _importance_edges(
        self, origins: Tensor, directions: Tensor, hit: Tensor, edges: Tensor, *, least: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which of K rays to render [P, K'], which of them count [P, K'], their edges [P, K', S + 1]."""
        config = self.config
        points = _points(origins, directions, edges)
        if self.lattice is None:
            sdf = self.scene.sdf(points).view_as(edges)
        else:
            sdf = read_lattice(self.lattice, points / self.scene.bounding_radius).view_as(edges)
        parts, middles = subdivide(edges, sdf, PARTS)
        densities, lengths = laplace_density(middles, self.sharpness), parts.diff(dim=-1)
        # Ranked by optical depth, which unlike opacity still tells nearly empty rays apart.
        optical_depth = (densities * lengths).sum(dim=-1)
        least = min(least, hit.shape[1]) if self.training else 0
        threshold = torch.full_like(optical_depth[:, 0], config.min_optical_depth)
        if least > 0:
            threshold = torch.minimum(threshold, optical_depth.topk(least, dim=1).values[:, -1])
        seen = hit & ~(optical_depth < threshold[:, None])  # what is not finite is to be seen
        kept = _compact(seen)
        weights = compositing_weights(_gather_rays(densities, kept), _gather_rays(lengths, kept)).nan_to_num()
        return (
            kept,
            _gather_rays(seen, kept),
            importance_edges(_gather_rays(parts, kept), weights, config.num_fine),
        )


def _compact(wanted: Tensor) -> Tensor:
    """Indexes [P, K] of each prompt's wanted rays [P, R] in their order, then of others to fill up.

    K, the busiest prompt's number, must reach the host: it shapes tensors.
    """
    count = max(int(wanted.sum(dim=1).amax()), 1)
    return torch.argsort(wanted.byte(), dim=1, descending=True, stable=True)[:, :count]


def _counting_waits(device: torch.device) -> bool:
    """Whether the host waits for a number that it asks of the device."""
    return device.type == "cuda"


def _all(wanted: Tensor) -> Tensor:
    """Indexes [P, R] of all rays, in their order."""
    return torch.arange(wanted.shape[1], device=wanted.device).expand_as(wanted)


def _gather_rays(values: Tensor, index: Tensor) -> Tensor:
    """Rows index [P, K] of values [P, R, ...]: [P, K, ...]."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def _points(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Points [P, K * S, 3] at distances t [P, K, S] along K rays."""
    return (origins[:, :, None] + t[..., None] * directions[:, :, None]).flatten(1, 2)


def _check_inputs(
    background: Tensor,
    u: Tensor | None,
    sharpness: float | Tensor,
    sizes: tuple[int, int, int, int],
    config: RendererConfig,
) -> None:
    if min(sizes) < 1:
        raise ValueError(f"render: P, V, height and width must each be at least 1, got {list(sizes)}")
    if background.shape != (*sizes[:2], 3):
        raise ValueError(
            f"render: background must be one colour per image, {[*sizes[:2], 3]}, "
            f"got {list(background.shape)}"
        )
    expected = [sizes[0], math.prod(sizes[1:]), config.num_samples]
    if u is not None and list(u.shape) != expected:
        raise ValueError(
            f"render: u must be [P, V * height * width, config.num_samples] = {expected}, got {list(u.shape)}"
        )
    if isinstance(sharpness, float | int) and sharpness <= 0:
        raise ValueError(f"render: sharpness must be positive, got {sharpness}")
