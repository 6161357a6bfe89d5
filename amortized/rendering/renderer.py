"""Volume rendering of signed distances (VolSDF, Yariv et al. 2021) or densities, for P scenes of V views.

`render` also is the entry for scenes of splats, which `amortized.rendering.splats` renders.

Each ray is divided into intervals, and each interval contributes by the density at one position in it. With
`num_fine` > 0, a coarse pass without gradient at `num_coarse` intervals selects the rays worth rendering and
places the fine intervals along them. It reads a lattice of values, computed once for all views of a scene,
so that the field is evaluated at rendered samples only.

Each row of every tensor belongs to one prompt throughout, so prompts cannot mix. Prompts with fewer rays to
render than the busiest one are padded with others of their rays, which do not contribute to the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from amortized.cameras import camera_rays
from amortized.config import check
from amortized.rendering.backgrounds import check_images
from amortized.rendering.chunks import chunk_size
from amortized.rendering.lattice import read_lattice, value_lattice
from amortized.rendering.point_light import PointLightConfig, PointLights, shade
from amortized.rendering.quadrature import (
    compositing_weights,
    even_edges,
    importance_edges,
    positions_in,
    sphere_bounds,
    subdivide,
)
from amortized.rendering.rays import all_rays, compact, gather_rays, points_at
from amortized.rendering.shading import ShadingConfig, brightness, field_gradient, normals
from amortized.rendering.splats import SplatEngine, render_splats
from amortized.rendering.volumes import SDFVolume, Volume, volume_of
from amortized.transfer import constant
from amortized.types import AnyScene, Cameras, HasBackground, RaySamples, Render, SplatScene

# The coarse pass has values at the edges of its intervals. They are nearly linear in between, so that
# interpolating at this many midpoints per interval locates the surface without further evaluations.
PARTS_PER_INTERVAL = 4

# Training renders at least this share of a prompt's rays even if they look empty: an object that has
# vanished must keep a gradient, with samples near its center, to recover.
MIN_RAY_SHARE = 0.125


@dataclass(frozen=True, kw_only=True)
class RendererConfig:
    """How densely rays are sampled."""

    num_coarse: int = 64  # intervals of the coarse pass, or of the only pass if num_fine is 0
    num_fine: int = 32  # intervals placed by importance; 0: a single pass over the coarse ones
    even_share: float | None = None  # of the fine intervals, placed evenly along the ray; null: 0.1
    lattice: int = 32  # vertices per side of the coarse pass's lattice; 0: evaluate the field instead
    min_optical_depth: float = 1e-3  # rays with less in the coarse pass show the background
    normal_epsilon: float = 0.01  # step of the finite difference for normals
    shading: ShadingConfig = field(default_factory=ShadingConfig)
    point_light: PointLightConfig | None = None  # of training images; null: none
    # Place training samples at random in their intervals (null, true), or at the midpoints (false).
    stratified: bool | None = None
    chunk: int | None = None  # field evaluations at once outside training; null: as many as memory allows
    splat_engine: SplatEngine = "auto"  # of scenes of splats: torch, or gsplat on a GPU if it is installed

    def __post_init__(self) -> None:
        check(self, "num_coarse", at_least=1, limit=4096)
        check(self, "chunk", at_least=1, limit=2**40)
        check(self, "num_fine", at_least=0, limit=4096)
        check(self, "lattice", at_least=0, limit=512)
        check(self, "min_optical_depth", at_least=0)
        check(self, "even_share", at_least=0, at_most=1)
        check(self, "normal_epsilon", above=0, limit=1)
        if self.lattice == 1:
            raise ValueError("lattice must be 0 (none) or at least 2, got 1")
        if self.point_light is not None and self.shading.kind != "none":
            raise ValueError(
                f"point_light and shading.kind={self.shading.kind} would shade images twice: set "
                "point_light=null, or shading.kind=none"
            )

    @property
    def num_samples(self) -> int:
        """Samples per rendered ray, and uniform numbers per ray in `render`."""
        return self.num_fine or self.num_coarse


def render(
    scene: AnyScene,
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
    lights: PointLights | None = None,
    want_normal: bool = False,
    want_gradients: bool = False,
) -> Render:
    """Render P scenes from V cameras each.

    background: color [P, V, 3] in [0, 1]. show_environment: bool [P, V], the images that show the scene's
    learned background instead if it has one; None: no image. sharpness: k of the Laplace density, in
    1/length; not used for a `DensityScene`. u: uniform numbers [P, V * H * W, config.num_samples] in [0, 1),
    one per interval, that place its sample; None: at the midpoint. lights: in training only; None:
    `config.shading`.

    Training keeps the graph of all rays and returns the `samples` of the rendered ones. Otherwise no graph
    is built and rays are rendered in chunks; images depend neither on the chunks nor on which other prompts
    are in the batch. Normals (unit, or zero for rays that were not rendered) cost 4 field evaluations per
    rendered ray and are computed only for shading and lights, or if `want_normal`. `samples.gradients` cost
    4 per sample and are computed only if `want_gradients`.

    Differentiable in the scene and in sharpness, not in the cameras. Autocast is disabled: in bfloat16,
    distances would be off by up to 0.004. A field that is not finite gives an image that is not finite.

    A `SplatScene` goes to `render_splats`: sharpness, u, lights and all of config but `splat_engine` have no
    meaning for it, and there are no `samples`.

    Raises ValueError if shapes do not match, or if the engine of splats cannot run.
    """
    if isinstance(scene, SplatScene):
        return render_splats(
            scene,
            cameras,
            height,
            width,
            background=background,
            training=training,
            show_environment=show_environment,
            want_normal=want_normal,
            engine=config.splat_engine,
        )
    num_prompts, num_views = cameras.fovy_deg.shape
    check_images(scene.num_prompts, background, (num_prompts, num_views, height, width))
    _check_inputs(u, sharpness, (num_prompts, num_views, height, width), config)
    assert training or lights is None, "lights are those of a training batch"
    keep_graph = training and torch.is_grad_enabled()
    with torch.autocast(cameras.c2w.device.type, enabled=False), torch.set_grad_enabled(keep_graph):
        rays = camera_rays(cameras, height, width)  # origins, directions: [P, V * H * W, 3]
        volume, lattice, num_evaluations = volume_of(scene, sharpness), None, 0
        chunk = chunk_size(config.chunk, rays.origins.device, training=training)
        if config.num_fine and config.lattice:
            lattice, num_evaluations = value_lattice(
                volume, num_prompts, config.lattice, like=rays.origins, chunk=chunk
            )
        march = _RayMarcher(
            volume=volume,
            lattice=lattice,
            config=config,
            lights=lights,
            pixels=height * width,
            want_normal=want_normal or config.shading.kind != "none" or lights is not None,
            want_gradients=want_gradients,
            training=training,
        )
        # Bound the largest evaluation: coarse edges, samples, or the 4 points of a normal. Training keeps the
        # graph of all rays, so chunks would save no memory.
        rays_per_chunk = chunk // (num_prompts * max(config.num_coarse + 1, config.num_samples, 4))
        step = rays.origins.shape[1] if training else max(1, rays_per_chunk)
        u_chunks = repeat(None) if u is None else u.split(step, dim=1)  # repeat has no end: zip is not strict
        chunks = zip(rays.origins.split(step, dim=1), rays.directions.split(step, dim=1), u_chunks)  # noqa: B905
        outputs = [march(*ray_chunk) for ray_chunk in chunks]
        pixels = torch.cat([output.pixels for output in outputs], dim=1)
        pixels = pixels.unflatten(1, rays.shape)  # [P, V, H, W, 5 or 8]
        rgb, opacity, depth, normal = pixels.split([3, 1, 1, pixels.shape[-1] - 5], dim=-1)
        behind = background[:, :, None, None]  # [P, V, 1, 1, 3]
        if show_environment is not None and isinstance(scene, HasBackground):
            environment = scene.background(rays.directions).unflatten(1, rays.shape)
            behind = torch.where(show_environment[:, :, None, None, None], environment, behind)
        return Render(
            rgb=rgb + (1 - opacity) * behind,
            opacity=opacity.squeeze(-1),
            depth=depth.squeeze(-1),
            normal=normal if want_normal else None,
            samples=outputs[0].samples if training else None,
            num_evaluations=num_evaluations + sum(output.num_evaluations for output in outputs),
        )


@dataclass(frozen=True, kw_only=True)
class _RayOutput:
    """The result of marching R rays of each prompt."""

    pixels: Tensor  # [P, R, 5 or 8]: premultiplied color, opacity, depth, and the normal if wanted
    samples: RaySamples
    num_evaluations: int


@dataclass(frozen=True, kw_only=True)
class _RayMarcher:
    """Marches R rays of each prompt per call."""

    volume: Volume
    lattice: Tensor | None  # [P, G, G, G] values for the coarse pass; None: it evaluates the field
    config: RendererConfig
    lights: PointLights | None
    pixels: int  # of an image
    want_normal: bool
    want_gradients: bool
    training: bool

    def __call__(self, origins: Tensor, directions: Tensor, u: Tensor | None) -> _RayOutput:
        """March rays with origins and directions [P, R, 3]; u: [P, R, S] in [0, 1), or None for midpoints."""
        num_prompts, num_rays = origins.shape[:2]
        num_evaluations = 0

        # 1. Clip rays to the bounding ball and drop those that miss: [P, R] => [P, K].
        near, far, valid = sphere_bounds(origins, directions, self.volume.scene.bounding_radius)
        # Rays that miss serve as padding only, with length 0 and all samples at the ball's center.
        origins = torch.where(valid[..., None], origins, 0.0)
        # On a GPU, reading the lattice for all rays is cheaper than waiting for the number of rays that hit.
        if self.lattice is not None and _reading_blocks_host(origins.device):
            index = all_rays(valid)
        else:
            index = compact(valid)
            origins, directions, near, far, valid = (
                gather_rays(values, index) for values in (origins, directions, near, far, valid)
            )
        edges = even_edges(near, far, self.config.num_coarse)  # [P, K, S + 1]

        # 2. Coarse pass: drop rays that look empty, and move the edges to the surface.
        if self.config.num_fine:
            # `render` has counted the lattice's evaluations.
            num_evaluations += 0 if self.lattice is not None else edges.numel()
            min_rays = int(MIN_RAY_SHARE * num_rays)
            selected, valid, edges = self._importance_edges(
                origins, directions, valid, edges, min_rays=min_rays
            )
            origins, directions, index = (
                gather_rays(values, selected) for values in (origins, directions, index)
            )

        # 3. Evaluate the field at one position per interval and composite front to back. From here on, edges
        #    are constants: gradients flow through field values, not through sample positions.
        t_positions = positions_in(edges, None if u is None else gather_rays(u, index))  # [P, K, S]
        samples_at = points_at(origins, directions, t_positions)
        values, albedo = self.volume.values_and_albedo(samples_at)
        gradients = self._gradient(samples_at) if self.want_gradients else None
        num_evaluations += values.numel() * (5 if self.want_gradients else 1)
        values = values.view_as(t_positions)  # [P, K, S]
        albedo = albedo.unflatten(1, t_positions.shape[1:])  # [P, K, S, 3]
        densities = self.volume.densities(values)
        # Padding rays must not show in the image.
        weights = compositing_weights(densities, edges.diff(dim=-1)) * valid[..., None]  # [P, K, S]
        opacity = weights.sum(dim=-1, keepdim=True)
        depth = (weights * t_positions).sum(dim=-1, keepdim=True)
        rgb = (weights[:, :, None] @ albedo).squeeze(2)  # [P, K, 3]

        # 4. One normal per ray, at its expected depth: 4 evaluations instead of 4 per sample.
        channels, gradient = [opacity, depth], None
        if self.want_normal:
            # `depth` is premultiplied by opacity. Detached: normals are not differentiable in their position.
            surface = (depth / opacity.clamp(min=1e-12)).detach()  # [P, K, 1]
            points = points_at(origins, directions, surface)  # [P, K, 3]
            gradient = self._gradient(points)
            num_evaluations += 4 * surface.numel()
            # Padding rays sit at the center, and a norm has no gradient at 0: use a constant.
            gradient = torch.where(valid[..., None], gradient, constant((0.0, 0.0, 1.0), gradient))
            normal = normals(gradient)  # [P, K, 3]
            if self.config.shading.kind != "none":
                rgb = rgb * brightness(normal, self.config.shading)
            if self.lights is not None:
                view = index // self.pixels
                rgb = shade(self.lights, view, rgb, opacity, points=points, normal=normal)
            channels.append(normal * valid[..., None])

        # 5. Scatter the K rendered rays back to all R; the others stay zero: fully transparent.
        rendered = torch.cat([rgb, *channels], dim=-1)  # [P, K, 5 or 8]
        pixels = rendered.new_zeros(num_prompts, num_rays, rendered.shape[-1])
        pixels = pixels.scatter(1, index[..., None].expand_as(rendered), rendered)
        is_sdf = isinstance(self.volume, SDFVolume)
        samples = RaySamples(
            valid=valid,
            directions=directions,
            t_positions=t_positions,
            # Padding rays look far outside, so that regularizers of the SDF ignore them.
            sdf=torch.where(valid[..., None], values, self.volume.outside) if is_sdf else None,
            weights=weights,
            gradient=gradient,
            gradients=None if gradients is None else gradients.unflatten(1, t_positions.shape[1:]),
        )
        return _RayOutput(pixels=pixels, samples=samples, num_evaluations=num_evaluations)

    def _gradient(self, points: Tensor) -> Tensor:
        """Return the field's gradient [P, N, 3] at points [P, N, 3], pointing outward."""
        scene, epsilon = self.volume.scene, self.config.normal_epsilon
        return self.volume.outward(field_gradient(self.volume.values, points, epsilon, scene.bounding_radius))

    @torch.no_grad()
    def _importance_edges(
        self, origins: Tensor, directions: Tensor, hit: Tensor, edges: Tensor, *, min_rays: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select rays by their optical depth, and place their fine intervals by importance.

        origins, directions: [P, K, 3]. hit: bool [P, K]. edges: [P, K, S + 1]. In training, at least
        `min_rays` rays of each prompt are selected if as many hit. Returns the selected rays [P, K'], which
        of them are valid (not padding) [P, K'], and their edges [P, K', num_fine + 1].
        """
        config = self.config
        points = points_at(origins, directions, edges)
        if self.lattice is None:
            values = self.volume.values(points).view_as(edges)
        else:
            values = read_lattice(self.lattice, points / self.volume.scene.bounding_radius).view_as(edges)
        fine_edges, midpoints = subdivide(edges, values, PARTS_PER_INTERVAL)
        densities, lengths = self.volume.densities(midpoints), fine_edges.diff(dim=-1)
        # Rank by optical depth: unlike opacity, it still distinguishes nearly empty rays in float32.
        optical_depth = (densities * lengths).sum(dim=-1)  # [P, K]
        threshold = torch.full_like(optical_depth[:, 0], config.min_optical_depth)
        min_rays = min(min_rays, hit.shape[1]) if self.training else 0
        if min_rays > 0:
            threshold = torch.minimum(threshold, optical_depth.topk(min_rays, dim=1).values[:, -1])
        # Negated, so that a NaN selects the ray and shows in the image.
        valid = hit & ~(optical_depth < threshold[:, None])
        selected = compact(valid)
        weights = compositing_weights(gather_rays(densities, selected), gather_rays(lengths, selected))
        fine_edges, weights = gather_rays(fine_edges, selected), weights.nan_to_num()
        new_edges = importance_edges(fine_edges, weights, config.num_fine, even_share=config.even_share)
        return selected, gather_rays(valid, selected), new_edges


def _reading_blocks_host(device: torch.device) -> bool:
    """Return whether the host waits to read a number from the device."""
    return device.type == "cuda"


def _check_inputs(
    u: Tensor | None,
    sharpness: float | Tensor,
    sizes: tuple[int, int, int, int],
    config: RendererConfig,
) -> None:
    """Raise ValueError if an argument of `render` does not fit `sizes` (P, V, H, W)."""
    expected = [sizes[0], math.prod(sizes[1:]), config.num_samples]
    if u is not None and list(u.shape) != expected:
        raise ValueError(
            f"render: u must be [P, V * height * width, config.num_samples] = {expected}, got {list(u.shape)}"
        )
    if isinstance(sharpness, float | int) and sharpness <= 0:
        raise ValueError(f"render: sharpness must be positive, got {sharpness}")
