"""What a run will cost, before it starts: the report of a dry run."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from amortized.density_control import density_controlled
from amortized.encodings import HashGrid
from amortized.guidance import calls_per_image
from amortized.monitoring import forecast, peak_memory_gib
from amortized.parallel import DDPStrategy
from amortized.rendering import PointLights, RendererConfig
from amortized.training.batches import TrainingBatch
from amortized.training.engines import engines
from amortized.training.metering import Meter
from amortized.training.teachers import Teacher, numbered
from amortized.training.trainer import Trainer
from amortized.wording import count


def describe(trainer: Trainer) -> str:
    """A report of the parts of a run, its denoiser calls and its memory; uses up the trainer's modules.

    Memory is that of the largest number of splats, which density control may reach.
    """
    config, generator = trainer.config.trainer, trainer.state.generator
    computes_on = engines(generator, trainer.config.renderer, trainer.world.device)
    growing = list(density_controlled(generator).values())
    growth = [f"# splats: {part.count:,} at the start, at most {part.limit:,}" for part in growing]
    for part in growing:
        part.resize(part.limit, trainer.state.optimizer)
    num_prompts, priors = len(trainer.trained), [teacher.guidance.prior for teacher in trainer.teachers]
    images = config.prompts_per_process * config.views_per_prompt
    parts = config.gradient_accumulation_steps
    per_image = sum(_calls(teacher) for teacher in trainer.teachers)
    shares = trainer.world.size if trainer.config.distributed.strategy == "fsdp2" else 1
    weights = _bytes(generator) // shares
    learned = _bytes(trainer.objective.learned) // shares if trainer.objective.learned else 0
    memory = {
        "generator with gradients and moments": 4 * weights,
        "EMA weights": weights if config.ema_decay is not None else 0,
        "reference model with gradients and moments": 4 * learned,
        **{numbered("prior", number): _bytes(*prior.modules()) for number, prior in enumerate(priors, 1)},
        "CLIP of the previews": _bytes(trainer.scorer.model) if trainer.scorer else 0,
        "trajectory cache at the end": trainer.cache_bytes,
        "activations of a step": step_memory(trainer),
    }
    monitoring, scored = trainer.config.monitoring, ""
    if trainer.scorer:
        clip = trainer.config.evaluation.clip
        scored = f", scored by {clip}, {_parameters(trainer.scorer.model):,} parameters"
    lines = [
        f"# generator: {type(generator).__name__}, {_parameters(generator):,} parameters",
        *(f"#   {name}: {_parameters(part):,}" for name, part in generator.named_children()),
        *(f"#   {name} runs on {engine}" for name, engine in computes_on.items()),
        *growth,
        *(f"# {note}" for note in trainer.start),
        *(
            f"# {numbered('prior', number)}: {type(prior).__name__}, {prior.prediction_type}, images of "
            f"{prior.image_size} px, {sum(_parameters(module) for module in prior.modules()):,} parameters"
            for number, prior in enumerate(priors, 1)
        ),
        f"# corpus: {count(num_prompts, 'training prompt')}; {trainer.slots_per_step} per step, "
        f"{config.steps * trainer.slots_per_step / num_prompts:.1f} visits each",
        f"# denoiser: {images * parts * per_image:.4g} images per step and process, {per_image:.3g} per "
        "rendered image",
        f"# previews: {count(min(monitoring.preview_prompts, num_prompts), 'prompt')} every "
        f"{count(monitoring.preview_every, 'step')}{scored}",
        *(f"# memory: {size / 2**20:,.0f} MiB {name}" for name, size in memory.items() if size),
    ]
    return "\n".join(lines)


def measure(trainer: Trainer) -> str:
    """Lines of a report: the times of two training steps of each render size, a forecast, and the memory.

    Writes nothing. Collective.
    """
    config, lines = trainer.config.trainer, []
    for start, num_steps, size in config.phases:
        seconds = []
        for step in range(start, start + 2):
            begin = time.perf_counter()
            trainer.step(step).values.tolist()  # waits for the device
            seconds.append(time.perf_counter() - begin)
        name = "time" if len(config.phases) == 1 else f"time at {size} px"
        lines.append(f"# {name}: {forecast(seconds, max(num_steps - 2, 1))}")
    trainer.prefetcher.close()
    memory = peak_memory_gib(trainer.world.device)
    return "\n" + "\n".join([*lines, f"# peak memory: {memory:.2f} GiB"])


RAY_SHARE = 0.6  # of the rays hit the object, if it fills most of the image; the others are not rendered


def step_memory(trainer: Trainer) -> int:
    """Peak bytes of a batch's forward and backward pass, besides weights and gradients.

    Counted on fake tensors, which replace all weights: nothing can be trained afterwards. Returns 0 if
    weights are sharded. Does not include workspaces of libraries or fragmentation of the allocator.
    """
    if not isinstance(trainer.strategy, DDPStrategy) or trainer.config.distributed.shard_prior:
        return 0
    config, objective = trainer.config.trainer, trainer.objective
    step, _, size = config.largest_phase
    batch = _with_lights(trainer.prepare(step, 0), trainer.config.renderer)
    meter = Meter(integer=max(1, int(RAY_SHARE * config.views_per_prompt * size**2)))
    priors: list[Any] = [teacher.guidance.prior for teacher in trainer.teachers]
    for module in (objective, *(module for prior in priors for module in prior.modules())):
        _without_kernels(module)
        meter.fake_weights(module)
    for prior in priors:
        if hasattr(prior, "graphs"):
            prior.graphs = False  # fake tensors cannot be recorded
    with meter, meter.section("step") as cost:
        losses = objective(batch, step / config.steps, (True,) * len(priors))
        (losses.total if losses.learned is None else losses.total + losses.learned).backward()
    gradients = (p.grad for p in objective.parameters() if p.grad is not None)
    return max(0, cost.peak - sum(gradient.nbytes for gradient in gradients))


def _calls(teacher: Teacher) -> float:
    """Denoiser images of a teacher per rendered image and step."""
    guidance = teacher.guidance
    return calls_per_image(guidance.config, teacher.bank.config.num_negatives, guidance.prior.num_timesteps)


def _with_lights(batch: TrainingBatch, config: RendererConfig) -> TrainingBatch:
    """The batch with all its images shaded, if some batches of the run are: that takes the most memory."""
    if config.point_light is None:
        return batch
    position = batch.draws.cameras.c2w[..., :3, 3]
    ambient = torch.zeros_like(position[..., 0])
    lights = PointLights(position=position, ambient=ambient, white=ambient.bool())
    return replace(batch, draws=replace(batch.draws, lights=lights))


def _without_kernels(module: nn.Module) -> None:
    """Switch hash grids to PyTorch: native kernels read memory, which fake tensors do not have."""
    for part in module.modules():
        if isinstance(part, HashGrid):
            part.config = replace(part.config, engine="torch")


def _bytes(*modules: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
