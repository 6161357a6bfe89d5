"""A training step as the public trainer of amortized ASD takes it, the baseline of ours in time and memory.

Generator, prior and guidance formula are the same as ours; only the implementation differs. As in that code:

    - one prompt, one view, 64 x 64; float32, no torch.compile, PyTorch's default memory layout
    - 128 even intervals from 0.1 to 4.0 on every ray, signed distances only, without gradient; 64 more drawn
      by their weights; all edges sorted: 193 intervals, each with a value and a normal by forward differences
      (3 more evaluations): 128 + 193 * 4 = 900 field evaluations per pixel, for every pixel
    - opacity of an interval = length * density, to first order; density with sharpness 30
    - bilinear resizing to 512 x 512, VAE in half precision with gradient, its posterior sampled
    - five images through the UNet in half precision: positive, null, two negatives at t; positive at t + dt
    - 0.5 |z - sg(z - g)|^2, sparsity, opaque, eikonal over all samples; Adam (0, 0.99), not fused

For measurements only; `Trainer` trains objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from amortized.cameras import camera_rays
from amortized.conditioning.rows import concatenate_rows
from amortized.conditioning.views import ViewText
from amortized.guidance.scores import perpendicular
from amortized.priors import StableDiffusionPrior
from amortized.rendering.quadrature import laplace_density
from amortized.types import Cameras, Scene, TextCondition

NEAR, FAR = 0.1, 4.0  # distances from the camera, independent of the object
NUM_COARSE, NUM_FINE = 128, 64
PER_PIXEL = NUM_COARSE + 4 * (NUM_COARSE + NUM_FINE + 1)  # field evaluations: 900
EPSILON = 0.01  # of the forward differences
SHARPNESS, MAX_DENSITY = 30.0, 80.0
CFG = 7.5
SHIFT = 0.1  # eta: dt is at most this share of t - t_min
T_RANGE = (260, 740)  # halfway through a run: the bounds move from (500, 980) to (20, 500)
WEIGHTS = {"sparsity": 20.0, "opaque": 10.0, "eikonal": 1.0}
Mark = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class RayOutput:
    """The rendered output of R rays of one prompt."""

    rgb: Tensor  # [R, 3]
    opacity: Tensor  # [R]
    depth: Tensor  # [R]
    normal: Tensor  # [R, 3] detached, in [0, 1]
    gradient: Tensor  # [R, 193, 3] of the signed distance, at every sample


@dataclass(kw_only=True)
class PublicBaseline:
    """Trains a generator on one prompt and one view per step."""

    generator: nn.Module
    prior: StableDiffusionPrior
    size: int = 64  # px, a side of the render
    learning_rate: float = 4e-3
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=self.learning_rate, betas=(0.0, 0.99), fused=False
        )

    def step(
        self,
        generator_text: TextCondition,
        prior_text: ViewText,
        cameras: Cameras,
        z: Tensor,
        mark: Mark = lambda _: None,
    ) -> Tensor:
        """Take a step and return its loss.

        generator_text, prior_text  one row each
        cameras                     [1, 1]
        z                           [1, z_dim]
        mark                        called with the name of each part at its end
        """
        with public_precision():
            scene = self.generator(generator_text, z)
            mark("generator")
            rendered = self.render_view(scene, cameras)
            mark("render")
            latents = self.encode(rendered.rgb)
            mark("encode")
            loss = self.guidance_loss(latents, prior_text) + regularization(rendered)
            mark("denoise")
            self.optimizer.zero_grad()
            loss.backward()
            mark("backward")
            self.optimizer.step()
            mark("update")
        return loss.detach()

    def render_view(self, scene: Scene, cameras: Cameras) -> RayOutput:
        """Render the view over a random background color; rays [H * W] row by row."""
        rays = camera_rays(cameras, self.size, self.size)
        background = torch.rand(1, 3, device=rays.origins.device)
        return march(scene, rays.origins, rays.directions, background)

    def encode(self, rgb: Tensor) -> Tensor:
        """Return latents [1, C, h, w] float32 of pixels [R, 3]."""
        image = rgb.view(1, self.size, self.size, 3).movedim(-1, 1)
        large = functional.interpolate(image, (self.prior.image_size,) * 2, mode="bilinear")
        posterior = self.prior.vae.encode((large * 2 - 1).to(self.prior.vae.dtype)).latent_dist
        return posterior.sample().float() * self.prior.vae.config.scaling_factor

    def guidance_loss(self, latents: Tensor, prior_text: ViewText) -> Tensor:
        """Return ASD's Perp-Neg loss, with gradient w(t) (target - reference) at latents [1, C, h, w]."""
        with torch.no_grad():
            gradient = self._gradient(latents.detach(), prior_text)
        target = (latents - gradient).detach()
        return 0.5 * functional.mse_loss(latents, target, reduction="sum") / len(latents)

    def _gradient(self, latents: Tensor, prior_text: ViewText) -> Tensor:
        """Return w(t) (target - reference) [1, C, h, w] with w(t) = 1 - alphas_cumprod(t)."""
        low, high = T_RANGE
        t = torch.randint(low, high + 1, (1,), device=latents.device)
        max_shift = torch.minimum(SHIFT * (t - low), self.prior.num_timesteps - 1.0 - t)
        shift = (max_shift * torch.rand(1, device=latents.device)).floor().long()
        t_plus = (t + shift).clamp(1, self.prior.num_timesteps - 1)
        noise = torch.randn_like(latents)
        noisy, noisy_plus = (self._add_noise(latents, noise, time) for time in (t, t_plus))
        texts = [prior_text.positive, prior_text.unconditional, *prior_text.negatives]
        noise_pred = self.prior.predict_noise(
            torch.cat([noisy] * len(texts) + [noisy_plus]),
            torch.cat([t] * len(texts) + [t_plus]),
            concatenate_rows([*texts, prior_text.positive]),
        )
        positive, null, *negatives, reference = noise_pred.chunk(len(texts) + 1)
        difference = positive - null
        direction = difference
        for weight, negative in zip(prior_text.negative_weights, negatives, strict=True):
            direction = direction + weight[:, None, None, None] * perpendicular(negative - null, difference)
        weight = 1 - self.prior.alphas_cumprod[t]
        return torch.nan_to_num(weight * (null + CFG * direction - reference))

    def _add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alphas_cumprod = self.prior.alphas_cumprod[t]
        return alphas_cumprod.sqrt() * latents + (1 - alphas_cumprod).sqrt() * noise


@contextmanager
def public_precision() -> Iterator[None]:
    """Context: disable TF32 in float32 matrix products.

    Float32 convolutions use TF32, PyTorch's default, as in the public code.
    """
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def march(scene: Scene, origins: Tensor, directions: Tensor, background: Tensor) -> RayOutput:
    """Render rays [1, R, 3] of one prompt over a color [1, 3], with 900 field evaluations each."""
    num_rays = origins.shape[1]
    with torch.no_grad():
        steps = torch.linspace(NEAR, FAR, NUM_COARSE + 1, device=origins.device)
        coarse = steps.expand(num_rays, -1)  # [R, 129]
        t = jittered_positions(coarse)
        sdf = scene.sdf(_clamp_to_box(scene, points_along(origins, directions, t))).view_as(t)
        fine = importance_edges(coarse, compositing_weights(sdf, coarse.diff(dim=-1)))
        edges = torch.cat([coarse, fine], dim=-1).sort(dim=-1).values  # [R, 194]
        t = jittered_positions(edges)
    points = _clamp_to_box(scene, points_along(origins, directions, t))  # [1, R * 193, 3]
    sdf, albedo = scene.sdf_and_albedo(points)
    gradient = forward_differences(scene, points, sdf).view(*t.shape, 3)
    weights = compositing_weights(sdf.view_as(t), edges.diff(dim=-1))
    opacity = weights.sum(dim=-1)
    rgb = (weights[..., None] * albedo.view(*t.shape, 3)).sum(dim=1)
    normal = functional.normalize(gradient, dim=-1)
    normal = functional.normalize((weights[..., None] * normal).sum(dim=1), dim=-1)
    return RayOutput(
        rgb=rgb + (1 - opacity[:, None]) * background,
        opacity=opacity,
        depth=(weights * t).sum(dim=-1),
        normal=((normal + 1) / 2 * opacity[:, None]).detach(),
        gradient=gradient,
    )


def jittered_positions(edges: Tensor) -> Tensor:
    """Return a uniform random position [R, S] in each interval of edges [R, S + 1]."""
    low = edges[:, :-1]
    return low + edges.diff(dim=-1) * torch.rand_like(low)


def points_along(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Return points [1, R * S, 3] at distances t [R, S] along rays [1, R, 3]."""
    return (origins[:, :, None] + t[None, :, :, None] * directions[:, :, None]).flatten(1, 2)


def forward_differences(scene: Scene, points: Tensor, sdf: Tensor) -> Tensor:
    """Return the gradient [1, N, 3] of the signed distance from its values [1, N], by 3 evaluations each."""
    offsets = EPSILON * torch.eye(3, device=points.device)
    moved = _clamp_to_box(scene, points[:, :, None] + offsets).flatten(1, 2)
    return (scene.sdf(moved).unflatten(1, (-1, 3)) - sdf[..., None]) / EPSILON


def compositing_weights(sdf: Tensor, lengths: Tensor) -> Tensor:
    """Return compositing weights [R, S] of signed distances and lengths [R, S]; opacities are first-order."""
    alphas = lengths * laplace_density(sdf, SHARPNESS).clamp(max=MAX_DENSITY)
    transmittance = functional.pad((1 - alphas[:, :-1]).cumprod(dim=-1), (1, 0), value=1.0)
    return alphas * transmittance


def importance_edges(edges: Tensor, weights: Tensor) -> Tensor:
    """Return 65 jittered edges [R, 65] at even quantiles of the weights [R, S] between edges [R, S + 1]."""
    share = weights.clamp(min=0) + 1e-5
    cdf = functional.pad((share / share.sum(dim=-1, keepdim=True)).cumsum(dim=-1), (1, 0))
    u = torch.arange(NUM_FINE + 1, device=edges.device) + torch.rand(len(edges), 1, device=edges.device)
    u = (u / (NUM_FINE + 1)).contiguous()
    right = torch.searchsorted(cdf, u, right=True).clamp(1, weights.shape[-1])
    c0, c1 = cdf.gather(-1, right - 1), cdf.gather(-1, right)
    e0, e1 = edges.gather(-1, right - 1), edges.gather(-1, right)
    return e0 + (e1 - e0) * ((u - c0) / (c1 - c0).clamp(min=1e-12)).clamp(0, 1)


def regularization(rendered: RayOutput) -> Tensor:
    """Return the sum of the weighted terms, a scalar; eikonal is over all samples of all rays."""
    covered = rendered.opacity.clamp(1e-3, 1 - 1e-3)
    terms = {
        "sparsity": (rendered.opacity.square() + 0.01).sqrt().mean(),
        "opaque": -(covered * covered.log() + (1 - covered) * (1 - covered).log()).mean(),
        "eikonal": (torch.linalg.vector_norm(rendered.gradient, dim=-1) - 1).square().mean(),
    }
    return torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()


def _clamp_to_box(scene: Scene, points: Tensor) -> Tensor:
    """Clamp points to the cube around the scene's bounding sphere."""
    return points.clamp(-scene.bounding_radius, scene.bounding_radius)
