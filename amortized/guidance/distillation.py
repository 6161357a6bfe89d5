"""One step of score distillation: from latents and texts to a loss whose gradient is the method's.

Every method is target minus reference, both noise predictions. SDS (arXiv 2209.14988), in one place:

    t ~ uniform{t_min, ..., t_max}
    noise ~ N(0, 1)
    x_t = sqrt(abar_t) * z + sqrt(1 - abar_t) * noise
    e_y, e_null = unet(x_t, t, [text, null])              # one batch, no gradient
    target = e_null + s * (e_y - e_null)                  # CFG, s = 100
    reference = noise
    g = w(t) * (target - reference)                       # w(t) = 1 - abar_t
    loss = 0.5 * |z - stop_gradient(z - g)|^2 / B         # d loss / d z = g / B

ASD (arXiv 2407.02040): the reference is the same network's prediction at a later time:

    t ~ uniform{t_min, ..., t_max};  u ~ uniform[0, 1)
    t' = t + floor(u * min(eta * (t - t_min), T - 1 - t)) # eta = 0.1
    noise ~ N(0, 1)                                       # the same at t and t'
    x_t, x_t' = add_noise(z, noise, t), add_noise(z, noise, t')
    e_y, e_null = unet(x_t, t, [text, null])              # these two and the next in one batch
    reference = unet(x_t', t', text)                      # later, and so more accurate
    target = e_null + s * (e_y - e_null)                  # s = 7.5
    g = w(t) * (target - reference)                       # w at t, not at t'
    loss as above

The other methods combine other parts (see `method_table`); the code below serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.conditioning.views import ViewText
from amortized.config import value_at
from amortized.guidance.config import GuidanceConfig
from amortized.guidance.costs import trajectory_cache_bytes
from amortized.guidance.draws import GuidanceDraws
from amortized.guidance.learned import LearnedReference, denoising_loss
from amortized.guidance.methods import Method, build_method
from amortized.guidance.scores import CleanBatch, Denoiser
from amortized.guidance.timesteps import (
    WEIGHTINGS,
    draw_timesteps,
    reference_timesteps,
    share_in_groups,
    timestep_range,
)
from amortized.priors.base import Prior
from amortized.priors.schedule import alphas_at
from amortized.transfer import to_device
from amortized.types import Cameras


@dataclass(frozen=True, kw_only=True)
class GuidanceOutput:
    """The result of a guidance step."""

    loss: Tensor  # scalar; only its gradient is meaningful, its value does not measure progress
    learned_loss: Tensor | None  # scalar, for the reference model alone: no gradient reaches the latents
    per_sample: Tensor  # [B] detached, 0.5 * |gradient|^2 before `weight`, of latents or of images
    timesteps: Tensor  # [B] long, t
    timesteps_reference: Tensor  # [B] long, t'
    num_denoiser_calls: int  # images sent through the denoiser
    num_gradient_calls: int  # of these, images with an autograd graph, for the reference model
    metrics: dict[str, Tensor]  # detached scalars on the latents' device


class Guidance:
    """A method of score distillation on a prior."""

    def __init__(
        self,
        prior: Prior,
        config: GuidanceConfig,
        learned: LearnedReference | None = None,
        *,
        method: Method | None = None,
    ) -> None:
        """Compose a method; `learned` is its reference model, and `method` overrides the config's parts.

        Raises ValueError if the reference model is missing or the prior cannot serve the method.
        """
        if config.uses_learned and learned is None:
            raise ValueError("this guidance needs a reference model: build it with build_guidance")
        if config.trajectory.cache and prior.views_per_group > 1:
            raise ValueError(
                "guidance.trajectory.cache caches predictions of single images, but this prior denoises "
                f"{prior.views_per_group} views together: set it to false"
            )
        self.prior, self.config, self.learned = prior, config, learned
        self.method = method or build_method(config)

    @property
    def learning_rate(self) -> float:
        """The reference model's learning rate; 0 without one."""
        return 0.0 if self.config.learned is None else self.config.learned.learning_rate

    @property
    def weight_decay(self) -> float:
        """The reference model's weight decay; 0 without one."""
        return (self.config.learned and self.config.learned.weight_decay) or 0.0

    @property
    def learns_every(self) -> int:
        """The number of steps between updates of the reference model."""
        return 1 if self.config.learned is None else self.config.learned.every

    def cache_bytes(self, num_assets: int, num_views: int) -> int:
        """Return the final size of the trajectory cache; 0 without one."""
        return trajectory_cache_bytes(self.config, self.method, self.prior, num_assets, num_views)

    def __call__(
        self,
        latents: Tensor,
        text: ViewText,
        draws: GuidanceDraws,
        progress: float,
        cameras: Cameras | None = None,
        *,
        images: Tensor | None = None,
        learn: bool = True,
    ) -> GuidanceOutput:
        """Return the losses of one step at `progress` = step / steps in [0, 1].

        latents [B, C, h, w] carry the autograd graph of the images; text has B rows, prompt-major, on the
        same device; cameras [P, V], B = P * V, are those of the images. The gradient of the loss with respect
        to the latents is

            weight / B * g,    g = w(t) * (target - reference),    w at t, not at t',

        without a derivative through the denoiser. With residual=image, `images` [B, H, W, 3] carry the graph
        instead, and g is decoded: D(z) - D(z - g). With `learn`, the reference model gets a loss, if there is
        one. A non-finite prediction makes the loss non-finite.

        Raises ValueError if time_per=prompt and cameras is None, or if B is not a multiple of the number of
        views that the prior denoises together.
        """
        batch_size = len(latents)
        assert len(text.positive.pooled) == batch_size, (
            f"{batch_size} latents, {len(text.positive.pooled)} texts"
        )
        clean = latents.detach()
        denoiser = Denoiser(self.prior, cameras)
        with torch.no_grad():
            # 1. Timesteps and noisy latents. A noise source may query the denoiser itself (ISM, SDI, DSD).
            inputs = self._inputs(clean, text, draws, progress, cameras)
            batch = self.method.noise(denoiser, inputs)
            # 2. All queries of target and reference in one denoiser batch; equal queries once.
            target_score, reference_score = self.method.target, self.method.reference
            predictions = denoiser({**target_score.queries(batch), **reference_score.queries(batch)})
            target = target_score.combine(predictions, batch)
            reference = reference_score.combine(predictions, batch)
            # 3. The gradient: weighted, then limited per image, so that one image cannot dominate the batch.
            difference = target - reference
            gradient = self._weights(inputs) * difference
            norms = norms_of(gradient)  # [B], before normalization
            gradient = self._limit(gradient, norms)
        # 4. The reference model's own loss, on the same latents at an independent timestep. `clean` is
        #    detached, so that this loss cannot train the generator.
        learned_loss = None
        if learn and self.learned is not None and self.config.learned is not None:
            loss = denoising_loss(self.prior, self.learned, clean, text, draws, cameras)
            learned_loss = self.config.learned.weight * loss
        # 5. A loss with this gradient: at the latents, or decoded, at the images. The latter keeps the
        #    encoder out of the backward pass.
        if self.config.residual == "image":
            assert images is not None, "residual=image needs the images"
            with torch.no_grad():
                change = self.prior.decode(clean) - self.prior.decode(clean - gradient)
            per_sample = surrogate(self.prior.resize(images), change)
        else:
            per_sample = surrogate(latents, gradient)
        return GuidanceOutput(
            loss=self.config.weight * per_sample.sum() / batch_size,
            learned_loss=learned_loss,
            per_sample=per_sample.detach(),
            timesteps=inputs.timesteps,
            timesteps_reference=inputs.timesteps_reference,
            num_denoiser_calls=denoiser.num_images + (0 if learned_loss is None else batch_size),
            num_gradient_calls=0 if learned_loss is None else batch_size,
            metrics={
                "gradient_norm": norms.mean(),
                "target_norm": norms_of(target).mean(),
                "reference_norm": norms_of(reference).mean(),
                "difference_norm": norms_of(difference).mean(),
                "timestep": inputs.timesteps.double().mean(),
                "timestep_reference": inputs.timesteps_reference.double().mean(),
            },
        )

    def _inputs(
        self,
        clean: Tensor,
        text: ViewText,
        draws: GuidanceDraws,
        progress: float,
        cameras: Cameras | None,
    ) -> CleanBatch:
        """Draw t and t' for clean latents [B, C, h, w], and look up the step's scale and reference model."""
        prior, group = self.prior, self._images_per_time(cameras)
        low, high = timestep_range(self.config, progress, prior.num_timesteps)
        # Draw the timesteps on the host, which needs t' to know how often an inversion queries the denoiser.
        u_timestep, u_shift = (share_in_groups(u.cpu(), group) for u in (draws.u_timestep, draws.u_shift))
        on_host = draw_timesteps(u_timestep, low, high)
        reference_on_host = reference_timesteps(
            self.config, on_host, u_shift, low=low, num_timesteps=prior.num_timesteps, progress=progress
        )
        timesteps, reference = to_device(torch.stack([on_host, reference_on_host]), clean.device)
        return CleanBatch(
            latents=clean,
            timesteps=timesteps,
            timesteps_reference=reference,
            reference_on_host=reference_on_host,
            text=text,
            draws=draws,
            guidance_scale=value_at(self.config.guidance_scale, progress),
            learned=None if self.learned is None else self.learned(text, draws.prompts),
        )

    def _images_per_time(self, cameras: Cameras | None) -> int:
        """Return the number of consecutive images that share t and t'."""
        if self.config.time_per == "group":
            return self.prior.views_per_group
        if cameras is None:
            raise ValueError("guidance.time_per=prompt needs cameras, to count the views of a prompt")
        return cameras.azimuth_deg.shape[1]

    def _weights(self, inputs: CleanBatch) -> Tensor:
        """Return the factor [B, 1, 1, 1] of target - reference."""
        abar = alphas_at(self.prior.alphas_cumprod, inputs.timesteps, inputs.latents)
        weights = WEIGHTINGS[self.config.weighting](abar)
        return weights / inputs.guidance_scale if self.config.divide_by_scale else weights

    def _limit(self, gradient: Tensor, norms: Tensor) -> Tensor:
        """Normalize or clip the gradient [B, C, h, w] of each image, given its norm [B]."""
        factors = torch.ones_like(norms)
        # clamp passes NaN on: a non-finite prediction must show in the loss.
        if self.config.normalize == "per_sample":
            factors = 1 / norms.clamp(min=1e-12)
        if self.config.max_norm is not None:
            factors = torch.minimum(factors, self.config.max_norm / norms.clamp(min=1e-12))
        return gradient * factors[:, None, None, None]


def norms_of(values: Tensor) -> Tensor:
    """Return the norm [B] of each image's values [B, ...]."""
    return values.flatten(1).norm(dim=1)


def surrogate(latents: Tensor, gradient: Tensor) -> Tensor:
    """Return losses [B] of 0.5 * |gradient|^2, whose derivative with respect to the latents is `gradient`.

    Both are [B, ...]. This is 0.5 * |z - sg(z - g)|^2, arranged so that z cancels exactly and g is not
    rounded to z's precision.
    """
    return 0.5 * (latents - latents.detach() + gradient.detach()).square().flatten(1).sum(1)
