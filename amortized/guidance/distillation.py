"""One step of score distillation: latents and text in, a loss with the right gradient out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from amortized.conditioning.rows import concatenate_rows
from amortized.conditioning.views import ViewText
from amortized.guidance.config import GuidanceConfig, GuidanceDraws
from amortized.guidance.methods import METHODS, Method
from amortized.guidance.scores import Branch, Step
from amortized.guidance.timesteps import draw_timesteps, share_in_groups, timestep_range
from amortized.guidance.weights import WEIGHTINGS
from amortized.priors.base import Prior
from amortized.priors.schedule import alphas_at
from amortized.types import Cameras, TextCondition


@dataclass(frozen=True, kw_only=True)
class GuidanceOutput:
    """What a step hands to the trainer."""

    loss: Tensor  # scalar; its value is of no use to judge progress, only its gradient is
    per_sample: Tensor  # [B] detached, 0.5 * |gradient|^2 before `weight`
    timesteps: Tensor  # [B] long, t
    timesteps_reference: Tensor  # [B] long, t'
    num_denoiser_calls: int  # images sent through the denoiser
    metrics: dict[str, Tensor]  # detached scalars on the latents' device


class Guidance:
    """A method of score distillation on a prior."""

    def __init__(self, prior: Prior, config: GuidanceConfig, method: Method | None = None) -> None:
        """`method` overrides the one that `config.method` names: any combination of parts will do."""
        self.prior = prior
        self.config = config
        self.method = method or METHODS[config.method](config)

    def __call__(
        self,
        latents: Tensor,
        text: ViewText,
        draws: GuidanceDraws,
        progress: float,
        cameras: Cameras | None = None,
    ) -> GuidanceOutput:
        """One step at `progress` = step / total in [0, 1].

        latents [B, C, h, w] carry the graph of the images; text has B rows, prompt-major, on the
        same device. The gradient of the loss with respect to the latents is

            weight / B * g,    g = w(t) * (target - reference),    w at t, not at t',

        with no derivative through the denoiser. A non-finite prediction makes the loss non-finite.
        """
        batch = len(latents)
        assert len(text.positive.pooled) == batch, f"{batch} latents, {len(text.positive.pooled)} texts"
        clean = latents.detach()
        with torch.no_grad():
            step, num_calls = self._prepare(clean, text, draws, progress)
            questions = self._questions(step)
            predictions = ask(self.prior, questions, cameras)
            target = self.method.target.combine(predictions, step)
            reference = self.method.reference.combine(predictions, step)
            weights = WEIGHTINGS[self.config.weighting](
                alphas_at(self.prior.alphas_cumprod, step.timesteps, clean)
            )
            gradient = weights * (target - reference)
            norms = gradient.flatten(1).norm(dim=1)  # [B]
            if self.config.normalize == "per_sample":
                gradient = gradient / norms.clamp(min=1e-12)[:, None, None, None]
        per_sample = surrogate(latents, gradient)
        return GuidanceOutput(
            loss=self.config.weight * per_sample.sum() / batch,
            per_sample=per_sample.detach(),
            timesteps=step.timesteps,
            timesteps_reference=step.timesteps_reference,
            num_denoiser_calls=num_calls + batch * len(questions),
            metrics={
                "gradient_norm": norms.mean(),  # before normalization
                "target_norm": target.flatten(1).norm(dim=1).mean(),
                "reference_norm": reference.flatten(1).norm(dim=1).mean(),
                "timestep": step.timesteps.double().mean(),
            },
        )

    def branches_per_image(self, num_negatives: int) -> int:
        """Denoiser images that one image costs a step, besides those a noise source may need."""
        empty = torch.empty(0)
        row = TextCondition(pooled=empty, tokens=empty, mask=empty)
        text = ViewText(
            positive=row, unconditional=row, negatives=(row,) * num_negatives, negative_weights=empty
        )
        step = Step(
            noisy=empty,
            noisy_reference=empty,
            noise=empty,
            timesteps=empty,
            timesteps_reference=empty,
            text=text,
            guidance_scale=1.0,
        )
        return len(self._questions(step))

    def _questions(self, step: Step) -> dict[str, Branch]:
        """The branches of target and reference; where both ask the same, once."""
        return {**self.method.target.branches(step), **self.method.reference.branches(step)}

    def _prepare(
        self, clean: Tensor, text: ViewText, draws: GuidanceDraws, progress: float
    ) -> tuple[Step, int]:
        """Times, noisy latents and scale of this step, and the denoiser calls they took."""
        prior, group = self.prior, self.prior.views_per_group
        low, high = timestep_range(self.config, progress, prior.num_timesteps)
        u_timestep, u_shift = (
            share_in_groups(u.to(clean.device), group) for u in (draws.u_timestep, draws.u_shift)
        )
        timesteps = draw_timesteps(u_timestep, low, high)
        later = self.method.reference_time(timesteps, u_shift, low, prior.num_timesteps)
        noised = self.method.noise(prior, clean, text, timesteps, later, draws.noise.to(clean))
        step = Step(
            noisy=noised.noisy,
            noisy_reference=noised.noisy_reference,
            noise=noised.noise,
            timesteps=timesteps,
            timesteps_reference=later,
            text=text,
            guidance_scale=self.config.scale_at(progress),
        )
        return step, noised.num_denoiser_calls


def ask(prior: Prior, questions: Mapping[str, Branch], cameras: Cameras | None = None) -> dict[str, Tensor]:
    """The predicted noise of every branch [B, C, h, w], all in one call of the denoiser."""
    branches: Sequence[Branch] = list(questions.values())
    if not branches:
        return {}
    predicted = prior.predict_noise(
        torch.cat([branch.noisy for branch in branches]),
        torch.cat([branch.timesteps for branch in branches]),
        concatenate_rows([branch.text for branch in branches]),
        None if cameras is None else _repeat(cameras, len(branches)),
    )
    return dict(zip(questions, predicted.chunk(len(branches)), strict=True))


def surrogate(latents: Tensor, gradient: Tensor) -> Tensor:
    """Per-sample losses [B] of value 0.5 * |gradient|^2 whose derivative by the latents is `gradient`.

    0.5 * |z - sg(z - g)|^2, arranged so that z cancels exactly instead of rounding g to z's digits.
    """
    return 0.5 * (latents - latents.detach() + gradient.detach()).square().flatten(1).sum(1)


def _repeat(cameras: Cameras, times: int) -> Cameras:
    """The cameras of P prompts as those of times * P, whole batch after whole batch."""
    parts = {part.name: getattr(cameras, part.name) for part in fields(cameras)}
    return Cameras(**{name: torch.cat([values] * times) for name, values in parts.items()})
