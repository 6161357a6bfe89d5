"""A step's loss as one module: what spreads modules over processes then sees every use of a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortized.config import geometric_at
from amortized.guidance import Guidance
from amortized.rendering import render
from amortized.training.ahead import Prepared
from amortized.training.losses import regularization
from amortized.training.settings import TrainingSettings
from amortized.transfer import to_device


class Objective(nn.Module):
    """A batch to its loss: text -> scene -> images -> latents -> guidance.

    Its parts are what is trained, `generator` and what guidance has `learned` of the renders (None where it
    learns nothing). The prior is no part of it: its weights are frozen.
    """

    def __init__(
        self, settings: TrainingSettings, guidance: Guidance, generator: nn.Module, device: torch.device
    ) -> None:
        super().__init__()
        self.settings, self.guidance, self.device = settings, guidance, device
        self.generator, self.learned = generator, guidance.learned

    def forward(self, prepared: Prepared, progress: float, learn: bool) -> dict[str, Tensor]:
        """The loss of one batch and its terms, scalars, at `progress` in [0, 1] of the training.

        `learned` is among them where the step is one of those that `learn`.
        """
        config, batch = self.settings.trainer, prepared.batch
        # 1. To the device: what the step reads there. What it decides on the host stays in `batch.draws`.
        told, read, cameras, z, background, own_background, u = to_device(
            (
                prepared.told, prepared.read, batch.cameras, batch.z, batch.background,
                batch.own_background, batch.stratification,
            ),
            self.device,
        )  # fmt: skip
        # 2. Text to scene to images.
        bfloat16 = config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            scene = self.generator(read, z)
        image = render(
            scene,
            cameras,
            config.render_size,
            config.render_size,
            config=self.settings.renderer,
            background=background,
            sharpness=geometric_at(config.sharpness, progress),
            training=True,
            u=u,
            own_background=own_background,
            want_normal=self.settings.losses.need_normals(progress),
        )
        # 3. Images to latents to guidance.
        images = image.rgb.flatten(0, 1)
        with torch.set_grad_enabled(self.guidance.config.residual == "latent"):
            latents = self.guidance.prior.encode(images)
        taught = self.guidance(latents, told, batch.draws, progress, cameras, images=images, learn=learn)
        # 4. The loss, and what is logged of it.
        terms = {"guidance": taught.loss, **regularization(image, self.settings.losses, progress)}
        learned = {} if taught.learned_loss is None else {"learned": taught.learned_loss}
        opacity = image.opacity.detach().mean(dim=(1, 2, 3))
        return {
            "loss": torch.stack(list(terms.values())).sum(),  # of the generator
            **terms,
            **learned,
            "opacity": opacity.mean(),
            "emptied": (opacity < config.min_opacity).float().mean(),  # share of prompts
            **{f"guidance/{name}": value for name, value in taught.metrics.items()},
            "denoiser_calls": taught.loss.new_full((), taught.num_denoiser_calls),
            "gradient_calls": taught.loss.new_full((), taught.num_gradient_calls),  # those of them
        }
