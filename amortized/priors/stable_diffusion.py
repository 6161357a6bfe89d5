"""Stable Diffusion 1.x and 2.x, SDXL, and models of these formats, as a prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amortized.conditioning.text_encoder import AnyTextEncoder
from amortized.priors.latent_prior import LatentPrior
from amortized.priors.multi_view import VIEWS_FILE, camera_vectors, join_views
from amortized.priors.schedule import alphas_at, usable_schedule, velocity_to_noise
from amortized.types import Cameras, TextCondition

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # the projections of every attention in the UNet


class StableDiffusionPrior(LatentPrior):
    """A frozen latent diffusion model with a text-conditioned UNet; see `amortized.priors.Prior`.

    The networks run in their own dtype; latents and noise keep the caller's. With more than one view per
    group the model is MVDream, see `amortized.priors.multi_view`. The UNet may be on another device than the
    rest; results return to the caller's device. With `offload` the UNet stays in CPU memory and is copied to
    the device for each call. With `graphs`, UNet and VAE encoder run as CUDA graphs, see
    `amortized.priors.graphs`.
    """

    def __init__(
        self,
        *,
        unet: Any,
        vae: Any,
        text_encoder: AnyTextEncoder,
        alphas_cumprod: Tensor,
        prediction_type: str,
        views_per_group: int = 1,
        offload: bool = False,
        graphs: bool = False,
        identity: str = "",
        size_ids: tuple[int, ...] | None = None,
    ) -> None:
        """Freeze the networks and wrap them.

        unet, vae        UNet2DConditionModel and AutoencoderKL of diffusers
        alphas_cumprod   [T], decreasing; last timesteps of pure noise are dropped
        prediction_type  "epsilon" or "v_prediction"
        identity         a text for the fingerprint: schedule, scaling and other properties besides weights
        size_ids         of SDXL: original size, crop and target size, the same for every image

        Raises ValueError for another prediction type, or parts that do not fit each other.
        """
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the prior's scheduler predicts '{prediction_type}'; "
                "only epsilon and v_prediction can be distilled"
            )
        alphas_cumprod = usable_schedule(alphas_cumprod)
        check_parts(unet, vae, text_encoder.width, is_xl=size_ids is not None)
        if views_per_group > 1:
            join_views(unet, views_per_group)
        elif unet.config.class_embed_type is not None:
            raise ValueError(
                f"this prior's UNet has a class embedding ({unet.config.class_embed_type}): if that is "
                f"the camera of a multi-view prior, its folder needs {VIEWS_FILE}"
            )
        super().__init__(
            network=unet,
            run=self._run_unet,
            vae=vae,
            text_encoder=text_encoder,
            alphas_cumprod=alphas_cumprod,
            lora_targets=LORA_TARGETS,
            offload=offload,
            graphs=graphs,
            identity=identity,
        )
        self.unet, self.views_per_group = unet, views_per_group
        self._size_ids = None if size_ids is None else torch.tensor([size_ids])  # [1, 6]
        # The UNet of SDXL takes the pooled vector of the second encoder only.
        self._pooled_width: int = getattr(getattr(text_encoder, "second", None), "width", text_encoder.width)
        self.prediction_type = prediction_type

    def predict_noise(
        self,
        latents_noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        # Padding is attended to, as in training: Stable Diffusion has no attention mask.
        inputs = [latents_noisy, timesteps, text.tokens]
        if self.views_per_group > 1:
            if cameras is None:
                raise ValueError("a multi-view prior needs the cameras of its views")
            inputs.append(camera_vectors(cameras))
        elif self._size_ids is not None:
            inputs.append(text.pooled[:, -self._pooled_width :])
            inputs.append(self._size_ids.expand(len(latents_noisy), -1))
        prediction = self.denoiser(*inputs, adapted=adapted, graph=self.graphs).to(latents_noisy)
        if self.prediction_type == "epsilon":
            return prediction
        abar = alphas_at(self.alphas_cumprod, timesteps, latents_noisy)
        return velocity_to_noise(prediction, latents_noisy, abar)

    def _run_unet(self, latents_noisy: Tensor, timesteps: Tensor, tokens: Tensor, *more: Tensor) -> Tensor:
        """Return the UNet's raw prediction [N, C, h, w], in its dtype and on its device.

        more  the cameras of a multi-view model, or the pooled text and the sizes of SDXL
        """
        labels: dict[str, Any] = {"class_labels": more[0]} if len(more) == 1 else {}
        if len(more) == 2:
            labels["added_cond_kwargs"] = dict(zip(("text_embeds", "time_ids"), more, strict=True))
        outputs = self.unet(
            latents_noisy, timesteps, encoder_hidden_states=tokens, return_dict=False, **labels
        )
        return outputs[0]


def check_parts(unet: Any, vae: Any, text_width: int, *, is_xl: bool = False) -> None:
    """Raise ValueError for parts that do not fit each other, or a UNet that needs further conditions."""
    problem, width = None, unet.config.cross_attention_dim
    if unet.config.in_channels != vae.config.latent_channels:
        problem = f"takes {unet.config.in_channels} channels, but its VAE has {vae.config.latent_channels}"
    elif isinstance(width, int) and width != text_width:
        problem = f"takes text of width {width}, but its text encoder has {text_width}"
    elif is_xl and unet.config.addition_embed_type != "text_time":
        problem = "takes no sizes, but there are two text encoders as in SDXL"
    elif not is_xl and unet.config.addition_embed_type not in (None, "text"):
        problem = f"needs '{unet.config.addition_embed_type}' in addition to the text"
    if problem is not None:
        raise ValueError(
            f"this prior's UNet {problem}: only text-to-image models in the format of Stable Diffusion 1, 2 "
            "and XL can be distilled"
        )
