"""One training step as the public trainer of amortized ASD spends it: the twin that ours is measured against.

The same generator, prior and guidance formula; only the way differs. As that code has it:

    one prompt, one view, 64 x 64; float32, no torch.compile, PyTorch's own memory layout
    128 even intervals from 0.1 to 4.0 on every ray, asked for distances without a gradient; from their
    weights 64 intervals more; all edges sorted: 193 intervals, in each a value and the normal by forward
    differences (3 evaluations more): 128 + 193 * 4 = 900 field evaluations a pixel, of every pixel
    opacity of an interval = length * density, to first order; density of sharpness 30
    512 x 512 by bilinear resizing, VAE in half precision with gradient, its posterior sampled
    five images through the UNet in half precision: positive, null and two negatives at t, positive at t + dt
    0.5 |z - sg(z - g)|^2, sparsity, opaque, eikonal over all samples; Adam (0, 0.99), not fused

It is for time and memory; objects are trained by `Trainer`.
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

NEAR, FAR = 0.1, 4.0  # distances from the camera, whatever the object's
NUM_COARSE, NUM_FINE = 128, 64
PER_PIXEL = NUM_COARSE + 4 * (NUM_COARSE + NUM_FINE + 1)  # field evaluations: 900
EPSILON = 0.01  # of the forward differences
SHARPNESS, MOST_DENSE = 30.0, 80.0
SCALE = 7.5  # of classifier-free guidance
SHIFT = 0.1  # eta: dt is at most this share of t's distance from the lower bound
T_RANGE = (260, 740)  # halfway through a run: the bounds go from (500, 980) to (20, 500)
WEIGHTS = {"sparsity": 20.0, "opaque": 10.0, "eikonal": 1.0}
Mark = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What comes back along R rays of one prompt."""

    rgb: Tensor  # [R, 3]
    opacity: Tensor  # [R]
    depth: Tensor  # [R]
    normal: Tensor  # [R, 3] detached, in [0, 1]
    gradient: Tensor  # [R, 193, 3] of the distance, at every sample


@dataclass(kw_only=True)
class PublicWay:
    """A generator in training, one prompt and one view at a time."""

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
        self, read: TextCondition, told: ViewText, cameras: Cameras, z: Tensor, mark: Mark = lambda _: None
    ) -> Tensor:
        """The loss of one step: a row of text of each kind, cameras [1, 1], z [1, z_dim].

        Calls `mark` with the name of each part when it is done.
        """
        with public_precision():
            scene = self.generator(read, z)
            mark("generator")
            seen = self.look(scene, cameras)
            mark("render")
            latents = self.encode(seen.rgb)
            mark("encode")
            loss = self.teach(latents, told) + regularization(seen)
            mark("denoise")
            self.optimizer.zero_grad()
            loss.backward()
            mark("backward")
            self.optimizer.step()
            mark("update")
        return loss.detach()

    def look(self, scene: Scene, cameras: Cameras) -> Seen:
        """The image over a random color, rays row by row."""
        rays = camera_rays(cameras, self.size, self.size)
        background = torch.rand(1, 3, device=rays.origins.device)
        return march(scene, rays.origins, rays.directions, background)

    def encode(self, rgb: Tensor) -> Tensor:
        """Latents [1, C, h, w] float32 of pixels [R, 3]."""
        image = rgb.view(1, self.size, self.size, 3).movedim(-1, 1)
        large = functional.interpolate(image, (self.prior.image_size,) * 2, mode="bilinear")
        posterior = self.prior.vae.encode((large * 2 - 1).to(self.prior.vae.dtype)).latent_dist
        return posterior.sample().float() * self.prior.vae.config.scaling_factor

    def teach(self, latents: Tensor, told: ViewText) -> Tensor:
        """The loss of ASD with Perp-Neg, its gradient by the latents being w(t) (target - reference)."""
        with torch.no_grad():
            gradient = self._gradient(latents.detach(), told)
        target = (latents - gradient).detach()
        return 0.5 * functional.mse_loss(latents, target, reduction="sum") / len(latents)

    def _gradient(self, latents: Tensor, told: ViewText) -> Tensor:
        low, high = T_RANGE
        t = torch.randint(low, high + 1, (1,), device=latents.device)
        longest = torch.minimum(SHIFT * (t - low), self.prior.num_timesteps - 1.0 - t)
        shift = (longest * torch.rand(1, device=latents.device)).floor().long()
        later = (t + shift).clamp(1, self.prior.num_timesteps - 1)
        noise = torch.randn_like(latents)
        now, then = (self._noised(latents, noise, time) for time in (t, later))
        texts = [told.positive, told.unconditional, *told.negatives]
        predicted = self.prior.predict_noise(
            torch.cat([now] * len(texts) + [then]),
            torch.cat([t] * len(texts) + [later]),
            concatenate_rows([*texts, told.positive]),
        )
        positive, null, *negatives, reference = predicted.chunk(len(texts) + 1)
        towards = positive - null
        direction = towards
        for weight, negative in zip(told.negative_weights, negatives, strict=True):
            direction = direction + weight[:, None, None, None] * perpendicular(negative - null, towards)
        weight = 1 - self.prior.alphas_cumprod[t]
        return torch.nan_to_num(weight * (null + SCALE * direction - reference))

    def _noised(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        kept = self.prior.alphas_cumprod[t]
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise


@contextmanager
def public_precision() -> Iterator[None]:
    """Within, products of float32 matrices are not taken in TF32. Convolutions are as PyTorch has them by
    default, as in the public code: where they are float32, in TF32."""
    ours = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(ours)


def march(scene: Scene, origins: Tensor, directions: Tensor, background: Tensor) -> Seen:
    """Render rays [1, R, 3] of one prompt with 900 field evaluations each."""
    num_rays = origins.shape[1]
    with torch.no_grad():
        steps = torch.linspace(NEAR, FAR, NUM_COARSE + 1, device=origins.device)
        coarse = steps.expand(num_rays, -1)  # [R, 129]
        t = inside(coarse)
        sdf = scene.sdf(_boxed(scene, along(origins, directions, t))).view_as(t)
        fine = drawn_by(coarse, weights_of(sdf, coarse.diff(dim=-1)))
        edges = torch.cat([coarse, fine], dim=-1).sort(dim=-1).values  # [R, 194]
        t = inside(edges)
    points = _boxed(scene, along(origins, directions, t))  # [1, R * 193, 3]
    sdf, albedo = scene.sdf_and_albedo(points)
    gradient = forward_differences(scene, points, sdf).view(*t.shape, 3)
    weights = weights_of(sdf.view_as(t), edges.diff(dim=-1))
    opacity = weights.sum(dim=-1)
    rgb = (weights[..., None] * albedo.view(*t.shape, 3)).sum(dim=1)
    normal = functional.normalize(gradient, dim=-1)
    normal = functional.normalize((weights[..., None] * normal).sum(dim=1), dim=-1)
    return Seen(
        rgb=rgb + (1 - opacity[:, None]) * background,
        opacity=opacity,
        depth=(weights * t).sum(dim=-1),
        normal=((normal + 1) / 2 * opacity[:, None]).detach(),
        gradient=gradient,
    )


def inside(edges: Tensor) -> Tensor:
    """A position [R, S] at random in each interval of edges [R, S + 1]."""
    low = edges[:, :-1]
    return low + edges.diff(dim=-1) * torch.rand_like(low)


def along(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Points [1, R * S, 3] at distances t [R, S] of rays [1, R, 3]."""
    return (origins[:, :, None] + t[None, :, :, None] * directions[:, :, None]).flatten(1, 2)


def forward_differences(scene: Scene, points: Tensor, sdf: Tensor) -> Tensor:
    """The distance's gradient [1, N, 3] from its values [1, N] and 3 evaluations a point more."""
    offsets = EPSILON * torch.eye(3, device=points.device)
    moved = _boxed(scene, points[:, :, None] + offsets).flatten(1, 2)
    return (scene.sdf(moved).unflatten(1, (-1, 3)) - sdf[..., None]) / EPSILON


def weights_of(sdf: Tensor, lengths: Tensor) -> Tensor:
    """Compositing weights [R, S] of distances and lengths [R, S]; opacities to first order."""
    alphas = lengths * laplace_density(sdf, SHARPNESS).clamp(max=MOST_DENSE)
    through = functional.pad((1 - alphas[:, :-1]).cumprod(dim=-1), (1, 0), value=1.0)
    return alphas * through


def drawn_by(edges: Tensor, weights: Tensor) -> Tensor:
    """65 edges [R, 65] that share the weights [R, S] between edges [R, S + 1] evenly, jittered."""
    share = weights.clamp(min=0) + 1e-5
    cdf = functional.pad((share / share.sum(dim=-1, keepdim=True)).cumsum(dim=-1), (1, 0))
    u = torch.arange(NUM_FINE + 1, device=edges.device) + torch.rand(len(edges), 1, device=edges.device)
    u = (u / (NUM_FINE + 1)).contiguous()
    right = torch.searchsorted(cdf, u, right=True).clamp(1, weights.shape[-1])
    c0, c1 = cdf.gather(-1, right - 1), cdf.gather(-1, right)
    e0, e1 = edges.gather(-1, right - 1), edges.gather(-1, right)
    return e0 + (e1 - e0) * ((u - c0) / (c1 - c0).clamp(min=1e-12)).clamp(0, 1)


def regularization(seen: Seen) -> Tensor:
    """The weighted terms, a scalar; eikonal over all samples of all rays."""
    covered = seen.opacity.clamp(1e-3, 1 - 1e-3)
    terms = {
        "sparsity": (seen.opacity.square() + 0.01).sqrt().mean(),
        "opaque": -(covered * covered.log() + (1 - covered) * (1 - covered).log()).mean(),
        "eikonal": (torch.linalg.vector_norm(seen.gradient, dim=-1) - 1).square().mean(),
    }
    return torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()


def _boxed(scene: Scene, points: Tensor) -> Tensor:
    """Points within the cube around the scene's ball."""
    return points.clamp(-scene.bounding_radius, scene.bounding_radius)
