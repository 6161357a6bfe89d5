"""Measure the time and memory of each part of a training step.

Baselines: one denoiser call per query instead of one for all; the public code's field evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amortized.commands.compose import RunConfig, build_parts, guidance_of, load_corpus
from amortized.conditioning.views import ViewText
from amortized.config import geometric_at
from amortized.guidance import GuidanceOutput, queries_per_image
from amortized.monitoring import Stopwatch
from amortized.parallel import World
from amortized.rendering import render
from amortized.training import Trainer
from amortized.training.batches import BatchDraws
from amortized.training.losses import regularization
from amortized.transfer import to_device
from amortized.types import Cameras, Render, Scene, TextCondition
from benchmarks.timing import seconds

PROGRESS = 0.5  # of the run, for the schedules
Mark = Callable[[str], object]


@dataclass(kw_only=True)
class StepParts:
    """Runs the parts of a trainer's step one by one, on the batch of step 0.

    The batch is already on the device: in training its copies overlap with the previous step.
    P prompts with V views each: P * V images.
    """

    trainer: Trainer
    batch: BatchDraws = field(init=False)  # on the CPU
    texts: list[str] = field(init=False)  # [P]
    generator_text: TextCondition = field(init=False)
    prior_text: ViewText = field(init=False)
    cameras: Cameras = field(init=False)  # [P, V]
    z: Tensor = field(init=False)  # [P, z_dim]
    background: Tensor = field(init=False)
    u: Tensor | None = field(init=False)  # stratification of the ray samples

    def __post_init__(self) -> None:
        trainer, device = self.trainer, self.trainer.world.device
        self.batch = trainer.sampler.draw(trainer.config.trainer.largest_phase[0], trainer.slots[0], 0)
        self.texts = [trainer.prompt(index).text for index in self.batch.prompt_indices]
        self.generator_text = trainer.bank.generator_text(self.texts)
        self.prior_text = trainer.bank.prior_text(self.texts, self.batch.cameras)
        batch = self.batch
        host_tensors = (batch.cameras, batch.z, batch.background, batch.stratification)
        self.cameras, self.z, self.background, self.u = to_device(host_tensors, device)

    def generate(self) -> Scene:
        return self.trainer.state.generator(self.generator_text, self.z)

    def render_views(self, scene: Scene) -> Render:
        config = self.trainer.config
        size = config.trainer.largest_phase[2]
        return render(
            scene,
            self.cameras,
            size,
            size,
            config=config.renderer,
            background=self.background,
            sharpness=geometric_at(config.trainer.sharpness, PROGRESS),
            training=True,
            u=self.u,
            want_normal=config.losses.need_normals(PROGRESS),
            want_gradients=config.losses.need_gradients(PROGRESS),
        )

    def encode(self, image: Render) -> Tensor:
        return self.trainer.guidance.prior.encode(image.rgb.flatten(0, 1))

    def apply_guidance(self, latents: Tensor) -> GuidanceOutput:
        return self.trainer.guidance(latents, self.prior_text, self.batch.guidance, PROGRESS, self.cameras)

    def step(self, mark: Mark) -> Tensor:
        """Take a step and return its loss; call `mark` with the name of each part at its end."""
        scene = self.generate()
        mark("generator")
        image = self.render_views(scene)
        mark("render")
        latents = self.encode(image)
        mark("encode")
        regularized = regularization(image, self.cameras, self.trainer.config.losses, PROGRESS)
        loss = self.apply_guidance(latents).loss + sum(regularized.values())
        mark("denoise")
        self.trainer.state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        mark("backward")
        self.trainer.state.optimizer.step()
        mark("update")
        return loss.detach()


def time_parts(step: Callable[[Mark], object], device: torch.device, repeats: int = 5) -> dict[str, float]:
    """Return the median seconds of each part of a step after one warm-up; no device syncs inside a step."""
    durations: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        stopwatch = Stopwatch(device)
        step(stopwatch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        for name, duration in stopwatch.seconds().items():
            durations.setdefault(name, []).extend([duration] * (turn > 0))
    return {name: sorted(times)[len(times) // 2] for name, times in durations.items()}


def measure(config: RunConfig, device: torch.device) -> dict[str, float]:
    """Return the milliseconds of each part of a step, images per second, ratios to baselines, and memory."""
    corpus = load_corpus(config)
    prior, bank, generator = build_parts(config, device)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    trainer = Trainer(
        config,
        world=World(device=device),
        corpus=corpus,
        guidance=guidance,
        bank=bank,
        generator=generator,
    )
    pieces = StepParts(trainer=trainer)

    def one_call_per_branch() -> None:
        for _ in range(queries_per_image(config.guidance, len(pieces.prior_text.negatives))):
            noise = pieces.batch.guidance.noise.to(device)
            times = torch.full((len(noise),), 500, device=device)
            guidance.prior.predict_noise(noise, times, pieces.prior_text.positive)

    sampling = seconds(lambda: trainer.sampler.draw(1, trainer.slots[0], 1))
    split = time_parts(pieces.step, device)
    step_seconds = seconds(lambda: pieces.step(lambda _: None))
    with torch.no_grad():
        image = pieces.render_views(pieces.generate())
        latents = pieces.encode(image)
        denoising, one_by_one = (
            seconds(lambda: pieces.apply_guidance(latents)),
            seconds(one_call_per_branch, 3),
        )
    graph = graph_bytes(lambda: pieces.render_views(pieces.generate()), generator.parameters())
    images = len(latents)
    return {
        **{f"{name}, ms": round(1000 * value, 1) for name, value in {"sample": sampling, **split}.items()},
        "step without sampling, ms": round(1000 * step_seconds, 1),
        "images per second": round(images / step_seconds, 1),
        "denoiser, a call per branch / one call": round(one_by_one / denoising, 2),
        "field evaluations per image": round(image.num_evaluations / images),
        "MiB of saved activations per prompt": round(graph / len(pieces.texts) / 2**20, 1),
    }


def graph_bytes(action: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Return the bytes that autograd saves for the backward pass of `action`'s result, without `weights`."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = action()
    del result
    weight_storages = {weight.untyped_storage().data_ptr() for weight in weights}
    return sum(size for address, size in storages.items() if address not in weight_storages)
