"""The training loss as one nn.Module, so that DDP, FSDP and DeepSpeed see every use of every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from amortized.config import geometric_at, step_at
from amortized.encodings import HashGrid
from amortized.guidance import Guidance, GuidanceOutput
from amortized.rendering import render
from amortized.training.batches import TrainingBatch
from amortized.training.config import BaseRunConfig
from amortized.training.losses import regularization
from amortized.training.teachers import numbered
from amortized.transfer import to_device
from amortized.types import AnyScene, SplatScene


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """The losses of a batch, scalars; a pytree, because FSDP2 looks for tensors in a module's output."""

    total: Tensor  # of the generator: guidance plus regularizers
    learned: Tensor | None  # of the reference model; None if this step does not train it
    metrics: dict[str, Tensor]  # to log; `denoiser_calls` and `gradient_calls` are sums, the others means


_pytree.register_dataclass(StepLosses)


def mean_numbers(losses: list[StepLosses]) -> dict[str, Tensor]:
    """The numbers of a step, each the mean over its parts, detached."""
    parts = []
    for loss in losses:
        learned = {} if loss.learned is None else {"learned": loss.learned.detach()}
        parts.append({"loss": loss.total.detach(), **learned, **loss.metrics})
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def splat_counts(scene: AnyScene) -> dict[str, Tensor]:
    """The number of splats of each prompt, to log; nothing for other scenes."""
    if not isinstance(scene, SplatScene):
        return {}
    return {"splats": scene.logits.new_full((), scene.logits.shape[1])}


class Objective(nn.Module):
    """text -> scene -> images -> latents -> guidance and regularizers -> losses.

    Submodules are the trainable ones only: `generator`, and `learned`, the reference models (None if there
    are none). The frozen priors are deliberately not submodules.
    """

    def __init__(
        self,
        config: BaseRunConfig,
        guidances: Sequence[Guidance],
        learned: nn.Module | None,
        generator: nn.Module,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config, self.guidances, self.device = config, guidances, device
        self.generator, self.learned = generator, learned

    def forward(self, batch: TrainingBatch, progress: float, learn: tuple[bool, ...]) -> StepLosses:
        """The losses of one batch at `progress` in [0, 1] of the training.

        The reference models of the teachers with `learn` are trained too.
        """
        config, draws = self.config.trainer, batch.draws
        # 1. To the device: the tensors that the step computes with. The draws of guidance stay on the host,
        #    which decides by them how often to call the denoiser.
        prior_texts, generator_text, cameras, z, background, show_environment, u, lights = to_device(
            (
                (batch.prior_text, *batch.more_prior_texts),
                batch.generator_text,
                draws.cameras,
                draws.z,
                draws.background,
                draws.show_environment,
                draws.stratification,
                draws.lights,
            ),
            self.device,
        )
        for part in self.generator.modules():
            if isinstance(part, HashGrid):
                part.set_progress(progress)
        # 2. Text to scene to images. Only the generator runs in bfloat16: the SDF and its finite
        #    differences need float32.
        bfloat16 = config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            scene = self.generator(generator_text, z)
        size = step_at(config.render_size, progress)
        renders = render(
            scene,
            cameras,
            size,
            size,
            config=self.config.renderer,
            background=background,
            sharpness=geometric_at(config.sharpness, progress),
            training=True,
            u=u,
            show_environment=show_environment,
            lights=lights,
            want_normal=self.config.losses.need_normals(progress),
            want_gradients=self.config.losses.need_gradients(progress),
        )
        # 3. Images to latents to guidance, for each teacher. If the residual is not taken in latent space,
        #    its gradient enters through the images, and the encoder needs no graph.
        images = renders.rgb.flatten(0, 1)  # [P, V, H, W, 3] => [B, H, W, 3]
        outputs: dict[str, GuidanceOutput] = {}
        parts = (self.guidances, prior_texts, (draws.guidance, *draws.more_guidance), learn)
        for number, (guidance, text, numbers, learns) in enumerate(zip(*parts, strict=True), 1):
            with torch.set_grad_enabled(guidance.config.residual == "latent"):
                latents = guidance.prior.encode(images)  # [B, C, h, w]
            outputs[numbered("guidance", number)] = guidance(
                latents, text, numbers, progress, cameras, images=images, learn=learns
            )
        # 4. The loss, and the numbers to log.
        regularized = regularization(renders, cameras, self.config.losses, progress)
        terms = {**{name: output.loss for name, output in outputs.items()}, **regularized}
        opacity = renders.opacity.detach().mean(dim=(1, 2, 3))  # [P]
        metrics = {
            **{name: term.detach() for name, term in terms.items()},
            "opacity": opacity.mean(),
            **splat_counts(scene),
            "emptied": (opacity < self.config.monitoring.min_opacity).float().mean(),  # share of prompts
            **{
                f"{teacher}/{name}": value
                for teacher, output in outputs.items()
                for name, value in output.metrics.items()
            },
        }
        total = torch.stack(list(terms.values())).sum()
        calls = sum(output.num_denoiser_calls for output in outputs.values())
        gradient_calls = sum(output.num_gradient_calls for output in outputs.values())
        metrics["denoiser_calls"] = total.new_full((), calls)
        metrics["gradient_calls"] = total.new_full((), gradient_calls)  # with a graph
        learned = [output.learned_loss for output in outputs.values() if output.learned_loss is not None]
        return StepLosses(
            total=total,
            learned=torch.stack(learned).sum() if len(learned) > 1 else next(iter(learned), None),
            metrics=metrics,
        )
