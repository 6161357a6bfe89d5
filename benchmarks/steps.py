"""The time and memory of each part of a training step.

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
class Pieces:
    """The parts of a trainer's step, on the batch of step 0, to run and time one by one.

    The batch is already on the device: in training its copies overlap with the previous step.
    """

    trainer: Trainer
    batch: BatchDraws = field(init=False)  # as it was drawn, on the CPU
    texts: list[str] = field(init=False)
    read: TextCondition = field(init=False)
    told: ViewText = field(init=False)
    cameras: Cameras = field(init=False)
    z: Tensor = field(init=False)
    background: Tensor = field(init=False)
    u: Tensor = field(init=False)

    def __post_init__(self) -> None:
        trainer, device = self.trainer, self.trainer.world.device
        self.batch = trainer.sampler.draw(0, trainer.slots[0], 0)
        self.texts = [trainer.prompt(index).text for index in self.batch.prompt_indices]
        self.read = trainer.bank.generator_text(self.texts)
        self.told = trainer.bank.prior_text(self.texts, self.batch.cameras)
        batch = self.batch
        given = (batch.cameras, batch.z, batch.background, batch.stratification)
        self.cameras, self.z, self.background, self.u = to_device(given, device)

    def generate(self) -> Scene:
        return self.trainer.state.generator(self.read, self.z)

    def look(self, scene: Scene) -> Render:
        settings = self.trainer.config
        size = settings.trainer.render_size
        return render(
            scene,
            self.cameras,
            size,
            size,
            config=settings.renderer,
            background=self.background,
            sharpness=geometric_at(settings.trainer.sharpness, PROGRESS),
            training=True,
            u=self.u,
            want_normal=settings.losses.need_normals(PROGRESS),
        )

    def encode(self, image: Render) -> Tensor:
        return self.trainer.guidance.prior.encode(image.rgb.flatten(0, 1))

    def teach(self, latents: Tensor) -> GuidanceOutput:
        return self.trainer.guidance(latents, self.told, self.batch.guidance, PROGRESS, self.cameras)

    def step(self, mark: Mark) -> Tensor:
        """Take a step and return its loss; calls `mark` with the name of each part when it is done."""
        scene = self.generate()
        mark("generator")
        image = self.look(scene)
        mark("render")
        latents = self.encode(image)
        mark("encode")
        regularized = regularization(image, self.trainer.config.losses, PROGRESS)
        loss = self.teach(latents).loss + sum(regularized.values())
        mark("denoise")
        self.trainer.state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        mark("backward")
        self.trainer.state.optimizer.step()
        mark("update")
        return loss.detach()


def split_of(step: Callable[[Mark], object], device: torch.device, repeats: int = 5) -> dict[str, float]:
    """Median seconds of each part of a step, after one warm-up; without device syncs within a step."""
    found: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        stopwatch = Stopwatch(device)
        step(stopwatch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        for name, took in stopwatch.seconds().items():
            found.setdefault(name, []).extend([took] * (turn > 0))
    return {name: sorted(times)[len(times) // 2] for name, times in found.items()}


def measure(config: RunConfig, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part of a step, ratios, and megabytes."""
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
    pieces = Pieces(trainer=trainer)

    def per_branch() -> None:
        for _ in range(queries_per_image(config.guidance, len(pieces.told.negatives))):
            noise = pieces.batch.guidance.noise.to(device)
            times = torch.full((len(noise),), 500, device=device)
            guidance.prior.predict_noise(noise, times, pieces.told.positive)

    sampling = seconds(lambda: trainer.sampler.draw(1, trainer.slots[0], 1))
    split = split_of(pieces.step, device)
    whole = seconds(lambda: pieces.step(lambda _: None))
    with torch.no_grad():
        image = pieces.look(pieces.generate())
        latents = pieces.encode(image)
        denoising, one_by_one = seconds(lambda: pieces.teach(latents)), seconds(per_branch, 3)
    graph = graph_bytes(lambda: pieces.look(pieces.generate()), generator.parameters())
    images = len(latents)
    return {
        **{f"{name}, ms": round(1000 * value, 1) for name, value in {"sample": sampling, **split}.items()},
        "step without sampling, ms": round(1000 * whole, 1),
        "images a second": round(images / whole, 1),
        "denoiser, a call per branch / one call": round(one_by_one / denoising, 2),
        "field evaluations an image": round(image.num_evaluations / images),
        "MiB of graph a prompt": round(graph / len(pieces.texts) / 2**20, 1),
    }


def graph_bytes(action: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of `action`'s result, excluding `weights`."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = action()
    del kept
    mine = {weight.untyped_storage().data_ptr() for weight in weights}
    return sum(size for place, size in storages.items() if place not in mine)
