"""One step of score distillation: latents and text in, a loss with the right gradient out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortized.conditioning.views import ViewText
from amortized.config import value_at
from amortized.guidance.config import GuidanceConfig, GuidanceDraws
from amortized.guidance.learned import denoising_loss
from amortized.guidance.noise import Clean, Gaussian, Inversion, NoiseSource, Seeded
from amortized.guidance.scores import (
    Branch,
    Denoiser,
    Guided,
    InvertedNoise,
    LearnedText,
    Null,
    Score,
    Step,
    TrueNoise,
)
from amortized.guidance.timesteps import (
    draw_timesteps,
    reference_timesteps,
    share_in_groups,
    timestep_range,
    whole,
)
from amortized.guidance.weights import WEIGHTINGS
from amortized.priors.base import Prior
from amortized.priors.schedule import alphas_at
from amortized.transfer import to_device
from amortized.types import Cameras, TextCondition


@dataclass(frozen=True, kw_only=True)
class Method:
    """The parts of a method that are asked; its times and its weight are numbers of the config."""

    noise: NoiseSource
    target: Score
    reference: Score


def method_of(config: GuidanceConfig) -> Method:
    """The parts that a config names."""
    learned_null = config.null == "learned"
    noises: dict[str, NoiseSource] = {
        "gaussian": Gaussian(),
        "inversion": Inversion(config=config.inversion, goes_on=config.shift == "earlier"),
        "seed": Seeded(config=config.trajectory),
    }
    references: dict[str, Score] = {
        "noise": TrueNoise(),
        "null": Null(learned=learned_null),
        "learned": Null(learned=True),
        "inverted": InvertedNoise(),
        "guided": Guided(
            scale=config.reference_scale,
            at_reference=config.shift != "none",
            negatives=config.reference_negatives,
            learned_null=learned_null,
        ),
    }
    return Method(
        noise=noises[config.noise],
        target=Guided(learned_null=learned_null),
        reference=references[config.reference],
    )


@dataclass(frozen=True, kw_only=True)
class GuidanceOutput:
    """What a step hands to the trainer."""

    loss: Tensor  # scalar; its value is of no use to judge progress, only its gradient is
    learned_loss: Tensor | None  # scalar, of the learned model alone: nothing of it reaches the latents
    per_sample: Tensor  # [B] detached, 0.5 * |gradient|^2 before `weight`, of latents or of images
    timesteps: Tensor  # [B] long, t
    timesteps_reference: Tensor  # [B] long, t'
    num_denoiser_calls: int  # images sent through the denoiser
    num_gradient_calls: int  # those of them with a graph, for the learned model
    metrics: dict[str, Tensor]  # detached scalars on the latents' device


class Guidance:
    """A method of score distillation on a prior."""

    def __init__(
        self,
        prior: Prior,
        config: GuidanceConfig,
        learned: nn.Module | None = None,
        *,
        method: Method | None = None,
    ) -> None:
        """`learned` is what the config says is learned; `method` overrides its parts by any others.

        Raises ValueError where the learned model is missing, or the prior cannot serve the method.
        """
        if config.uses_learned and learned is None:
            raise ValueError("this guidance reads a learned model of the renders: give one (build_learned)")
        if config.trajectory.cache and prior.views_per_group > 1:
            raise ValueError(
                "guidance.trajectory.cache keeps what was predicted for an image alone: set it to false, as "
                f"this prior denoises {prior.views_per_group} views together"
            )
        self.prior, self.config, self.learned = prior, config, learned
        self.method = method or method_of(config)

    @property
    def learning_rate(self) -> float:
        """Of the learned model; 0 where nothing is learned."""
        return 0.0 if self.config.learned is None else self.config.learned.learning_rate

    @property
    def learns_every(self) -> int:
        """The learned model learns at every so many steps."""
        return 1 if self.config.learned is None else self.config.learned.every

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
        """One step at `progress` = step / total in [0, 1].

        latents [B, C, h, w] carry the graph of the images; text has B rows, prompt-major, on the
        same device; cameras [P, V] are those of the images. The gradient of the loss with respect to
        the latents is

            weight / B * g,    g = w(t) * (target - reference),    w at t, not at t',

        with no derivative through the denoiser. Where the config says residual=image, `images` [B, H, W, 3]
        carry the graph instead, and g is decoded: D(z) - D(z - g). `learn` says whether a learned model,
        where there is one, learns at this step. A non-finite prediction makes the loss non-finite.
        """
        batch = len(latents)
        assert len(text.positive.pooled) == batch, f"{batch} latents, {len(text.positive.pooled)} texts"
        clean = latents.detach()
        denoiser = Denoiser(self.prior, cameras)
        with torch.no_grad():
            step = self._prepare(denoiser, clean, text, draws, progress)
            predictions = denoiser(questions_of(self.method, step))
            target = self.method.target.combine(predictions, step)
            reference = self.method.reference.combine(predictions, step)
            difference = target - reference
            gradient = self._weights(step, clean) * difference
            norms = norms_of(gradient)  # [B]
            gradient = self._limited(gradient, norms)
        learned_loss = None
        if learn and self.learned is not None and self.config.learned is not None:
            loss = denoising_loss(self.prior, self.learned, clean, text, draws, cameras)
            learned_loss = self.config.learned.weight * loss
        if self.config.residual == "image":
            assert images is not None, "residual=image needs the images"
            with torch.no_grad():
                change = self.prior.decode(clean) - self.prior.decode(clean - gradient)
            per_sample = surrogate(self.prior.resize(images), change)
        else:
            per_sample = surrogate(latents, gradient)
        return GuidanceOutput(
            loss=self.config.weight * per_sample.sum() / batch,
            learned_loss=learned_loss,
            per_sample=per_sample.detach(),
            timesteps=step.timesteps,
            timesteps_reference=step.timesteps_reference,
            num_denoiser_calls=denoiser.num_images + (0 if learned_loss is None else batch),
            num_gradient_calls=0 if learned_loss is None else batch,
            metrics={
                "gradient_norm": norms.mean(),  # before normalization
                "target_norm": norms_of(target).mean(),
                "reference_norm": norms_of(reference).mean(),
                "difference_norm": norms_of(difference).mean(),
                "timestep": step.timesteps.double().mean(),
                "timestep_reference": step.timesteps_reference.double().mean(),
            },
        )

    def cache_bytes(self, num_assets: int, num_views: int) -> int:
        """What a cache of trajectories comes to, if there is one."""
        if not isinstance(self.method.noise, Seeded):
            return 0
        lowest = min(timestep_range(self.config, p / 100, self.prior.num_timesteps)[0] for p in range(101))
        if self.config.shift == "earlier":
            span = max(value_at(self.config.shift_span, p / 100) for p in range(101))
            lowest -= whole(span, self.prior.num_timesteps)
        kept = self.method.noise.num_kept(lowest, self.prior.num_timesteps)
        channels, height, width = self.prior.latent_shape
        return 4 * channels * height * width * kept * num_assets * num_views

    def _prepare(
        self, denoiser: Denoiser, clean: Tensor, text: ViewText, draws: GuidanceDraws, progress: float
    ) -> Step:
        """Times, noisy latents and scale of this step."""
        prior, group = self.prior, self._images_per_time(denoiser.cameras)
        low, high = timestep_range(self.config, progress, prior.num_timesteps)
        u_timestep, u_shift = (share_in_groups(u.cpu(), group) for u in (draws.u_timestep, draws.u_shift))
        on_host = draw_timesteps(u_timestep, low, high)
        reference_on_host = reference_timesteps(
            self.config, on_host, u_shift, low=low, num_timesteps=prior.num_timesteps, progress=progress
        )
        timesteps, reference = to_device(torch.stack([on_host, reference_on_host]), clean.device)
        noised = self.method.noise(
            denoiser,
            Clean(
                latents=clean, timesteps=timesteps, timesteps_reference=reference,
                reference_on_host=reference_on_host, text=text, draws=draws,
            ),
        )  # fmt: skip
        return Step(
            noisy=noised.noisy,
            timesteps=timesteps,
            noisy_reference=noised.noisy_reference,
            timesteps_reference=reference,
            noise=noised.noise,
            text=text,
            guidance_scale=value_at(self.config.guidance_scale, progress),
            inverted=noised.inverted,
            learned=None if self.learned is None else self.learned(text, draws.prompts),
        )

    def _images_per_time(self, cameras: Cameras | None) -> int:
        """How many neighbouring images share t and t'."""
        if self.config.time_per == "group":
            return self.prior.views_per_group
        if cameras is None:
            raise ValueError("guidance.time_per=prompt needs cameras: they tell a prompt's images")
        return cameras.azimuth_deg.shape[1]

    def _weights(self, step: Step, like: Tensor) -> Tensor:
        """What multiplies target - reference, [B, 1, 1, 1]."""
        abar = alphas_at(self.prior.alphas_cumprod, step.timesteps, like)
        weights = WEIGHTINGS[self.config.weighting](abar)
        return weights / step.guidance_scale if self.config.divide_by_scale else weights

    def _limited(self, gradient: Tensor, norms: Tensor) -> Tensor:
        """The gradient of each image at the norm that the config allows."""
        factors = torch.ones_like(norms)
        if self.config.normalize == "per_sample":
            factors = 1 / norms.clamp(min=1e-12)
        if self.config.max_norm is not None:
            factors = torch.minimum(factors, self.config.max_norm / norms.clamp(min=1e-12))
        return gradient * factors[:, None, None, None]


def norms_of(values: Tensor) -> Tensor:
    """Of each image [B]."""
    return values.flatten(1).norm(dim=1)


def questions_of(method: Method, step: Step) -> dict[str, Branch]:
    """The branches of target and reference; where both ask the same, once."""
    return {**method.target.branches(step), **method.reference.branches(step)}


def branches_per_image(config: GuidanceConfig, num_negatives: int = 0, progress: float = 0.0) -> int:
    """Denoiser images that target and reference of one image ask at `progress` of a run."""
    empty = torch.empty(0)
    row = TextCondition(pooled=empty, tokens=empty, mask=empty)
    text = ViewText(
        positive=row, unconditional=row, empty=row, negatives=(row,) * num_negatives, negative_weights=empty
    )
    step = Step(
        noisy=empty, timesteps=empty, noisy_reference=empty, timesteps_reference=empty, noise=empty,
        text=text, guidance_scale=value_at(config.guidance_scale, progress),
        learned=LearnedText(text=row, adapted=False),
    )  # fmt: skip
    return len(questions_of(method_of(config), step))


def calls_per_image(config: GuidanceConfig, num_negatives: int = 0, num_timesteps: int = 1000) -> float:
    """Denoiser images that one image costs a step, on average over a run; nothing kept."""
    noise, total = method_of(config).noise, 0.0
    u = (torch.arange(64) + 0.5) / 64
    other = (u * 27.0) % 1  # as good as independent of u
    for progress in u.tolist():
        low, high = timestep_range(config, progress, num_timesteps)
        reference = reference_timesteps(
            config, draw_timesteps(u, low, high), other, low=low, num_timesteps=num_timesteps,
            progress=progress,
        )  # fmt: skip
        total += noise.calls(reference, num_timesteps, num_negatives).double().mean().item()
        total += branches_per_image(config, num_negatives, progress)
    learning = 0.0 if config.learned is None else 1 / config.learned.every
    return total / 64 + learning


def surrogate(latents: Tensor, gradient: Tensor) -> Tensor:
    """Per-sample losses [B] of value 0.5 * |gradient|^2 whose derivative by the latents is `gradient`.

    0.5 * |z - sg(z - g)|^2, arranged so that z cancels exactly instead of rounding g to z's digits.
    """
    return 0.5 * (latents - latents.detach() + gradient.detach()).square().flatten(1).sum(1)
