"""Stable Diffusion 3 and 3.5, rectified flows with a transformer, as a prior."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amortized.conditioning.three_encoders import ThreeTextEncoders
from amortized.priors.latent_prior import LatentPrior
from amortized.priors.schedule import (
    alphas_at,
    flow_alphas_cumprod,
    flow_time,
    flow_velocity_to_noise,
    to_flow,
    usable_schedule,
)
from amortized.types import Cameras, TextCondition

# The projections of images and of texts, in every joint attention.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class StableDiffusion3Prior(LatentPrior):
    """A frozen rectified flow in the latents of an autoencoder; see `amortized.priors.Prior`.

    Latents, noise and `alphas_cumprod` are variance preserving, as those of every prior. `predict_noise`
    scales the latents to the flow's, calls the transformer at the flow time with the same ratio of signal to
    noise, and converts its velocity to noise; all three steps are exact, see `amortized.priors.schedule`. So
    every method runs unchanged. A timestep t is an index into the T flow times of the folder's scheduler,
    after its shift. With the published shift of 3, t is noisier than the same t of Stable Diffusion 2.

    Devices, precision, `offload` and `graphs` are as in `StableDiffusionPrior`.
    """

    prediction_type = "flow_prediction"
    views_per_group = 1

    def __init__(
        self,
        *,
        transformer: Any,
        vae: Any,
        text_encoder: ThreeTextEncoders,
        shift: float,
        num_timesteps: int = 1000,
        offload: bool = False,
        graphs: bool = False,
        identity: str = "",
    ) -> None:
        """Freeze the networks and wrap them.

        transformer, vae  SD3Transformer2DModel and AutoencoderKL of diffusers
        shift             of the flow times; 1: uniform
        num_timesteps     of the training; the last ones, pure noise, are dropped
        identity          a text for the fingerprint: schedule, scaling and other properties besides weights

        Raises ValueError for parts that do not fit each other.
        """
        check_parts_3(transformer, vae, text_encoder.width, text_encoder.pooled_width)
        super().__init__(
            network=transformer,
            run=self._run_transformer,
            vae=vae,
            text_encoder=text_encoder,
            alphas_cumprod=usable_schedule(flow_alphas_cumprod(num_timesteps, shift)),
            lora_targets=LORA_TARGETS,
            offload=offload,
            graphs=graphs,
            identity=identity,
        )
        self.transformer = transformer
        self._time_scale = num_timesteps  # the transformer's time runs from 0 to this
        self._pooled_width = text_encoder.pooled_width

    def predict_noise(
        self,
        latents_noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        # From abar as the caller added noise with it, rounding included: time and noise level then agree.
        abar = alphas_at(self.alphas_cumprod, timesteps, latents_noisy)
        x_flow, time = to_flow(latents_noisy, abar), flow_time(abar).flatten()
        velocity = self.denoiser(
            x_flow,
            time * self._time_scale,
            text.tokens,  # padding included, as in training
            text.pooled[:, : self._pooled_width],
            adapted=adapted,
            graph=self.graphs,
        ).to(latents_noisy)
        return flow_velocity_to_noise(velocity, x_flow, abar)

    def _run_transformer(self, x_flow: Tensor, times: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        """Return the transformer's velocity [N, C, h, w], in its dtype and on its device."""
        return self.transformer(
            x_flow,
            timestep=times,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            return_dict=False,
        )[0]


def check_parts_3(transformer: Any, vae: Any, text_width: int, pooled_width: int) -> None:
    """Raise ValueError for parts that do not fit each other."""
    problem, config = None, transformer.config
    if config.in_channels != vae.config.latent_channels:
        problem = f"takes {config.in_channels} channels, but its VAE has {vae.config.latent_channels}"
    elif config.joint_attention_dim != text_width:
        problem = (
            f"takes tokens of width {config.joint_attention_dim}, but its text encoders have {text_width}"
        )
    elif config.pooled_projection_dim != pooled_width:
        problem = (
            f"takes a pooled text of width {config.pooled_projection_dim}, but its two CLIPs project to "
            f"{pooled_width}"
        )
    if problem is not None:
        raise ValueError(
            f"this prior's transformer {problem}: only models in the format of Stable Diffusion 3 can be "
            "distilled"
        )
