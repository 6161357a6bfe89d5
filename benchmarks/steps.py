"""Where a training step's time and memory go.

Baselines: a denoiser asked once per branch instead of once for all; the public code's evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from amortized.guidance import branches_per_image
from amortized.rendering import render
from amortized.schedules import geometric_at
from amortized.training import Trainer, World
from amortized.training.losses import regularization
from amortized.transfer import to_device
from amortized.types import Scene
from benchmarks.timing import now, seconds
from train import RunConfig, compose, corpus_of, guidance_of

PROGRESS = 0.5  # of the run, for the schedules


def measure(config: RunConfig, device: torch.device) -> dict[str, float]:
    """Milliseconds of each part of a step, ratios, and megabytes."""
    corpus = corpus_of(config)
    prior, bank, generator = compose(config, device)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    trainer = Trainer(
        config, world=World(device=device), corpus=corpus, guidance=guidance, bank=bank,
        generator=generator,
    )  # fmt: skip
    batch = trainer.sampler.batch(0, trainer.slots[0], 0)
    texts = [trainer.prompt(index).text for index in batch.prompt_indices]
    view_text = bank.views(texts, batch.cameras)
    size, sharpness = config.trainer.render_size, geometric_at(config.trainer.sharpness, PROGRESS)

    def generate(num_prompts: int = len(texts)) -> Scene:
        return generator(bank.get(texts[:num_prompts]), batch.z[:num_prompts].to(device))

    def look(scene: Scene):
        return render(
            scene, to_device(batch.cameras, device), size, size, config=config.renderer,
            background=batch.background.to(device), sharpness=sharpness, training=True,
            u=batch.stratification.to(device), want_normal=config.losses.need_normals(PROGRESS),
        )  # fmt: skip

    def teach(latents: Tensor):
        return guidance(latents, view_text, batch.draws, PROGRESS, to_device(batch.cameras, device))

    def per_branch() -> None:
        for _ in range(branches_per_image(config.guidance, len(view_text.negatives))):
            noise = batch.draws.noise.to(device)
            times = torch.full((len(noise),), 500, device=device)
            guidance.prior.predict_noise(noise, times, view_text.positive)

    split: dict[str, list[float]] = {}

    def step() -> None:
        marks = [("", now())]
        scene = generate()
        marks.append(("generator", now()))
        image = look(scene)
        marks.append(("render", now()))
        latents = guidance.prior.encode(image.rgb.flatten(0, 1))
        marks.append(("encode", now()))
        loss = teach(latents).loss + sum(regularization(image, config.losses, PROGRESS).values())
        marks.append(("denoise", now()))
        trainer.state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(("backward", now()))
        trainer.state.optimizer.step()
        marks.append(("optimizer", now()))
        for (_, start), (name, end) in zip(marks, marks[1:], strict=False):
            split.setdefault(name, []).append(end - start)

    sampling = seconds(lambda: trainer.sampler.batch(1, trainer.slots[0], 1))
    whole = seconds(step)
    with torch.no_grad():
        scene = generate()
        image = look(scene)
        latents = guidance.prior.encode(image.rgb.flatten(0, 1))
        denoising, one_by_one = seconds(lambda: teach(latents)), seconds(per_branch, 3)
    graph = graph_bytes(lambda: look(generate()), generator.parameters())
    images = len(latents)
    times = {"sample": sampling, **{name: sorted(all_)[len(all_) // 2] for name, all_ in split.items()}}
    return {
        **{f"{name}, ms": round(1000 * value, 1) for name, value in times.items()},
        "step without sampling, ms": round(1000 * whole, 1),
        "images a second": round(images / whole, 1),
        "denoiser, a call per branch / one call": round(one_by_one / denoising, 2),
        "field evaluations an image": round(image.num_evaluations / images),
        "MiB of graph a prompt": round(graph / len(texts) / 2**20, 1),
    }


def graph_bytes(action: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Bytes that the graph of what `action` returns keeps for the backward pass, `weights` apart."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = action()
    del kept
    mine = {weight.untyped_storage().data_ptr() for weight in weights}
    return sum(size for place, size in storages.items() if place not in mine)
