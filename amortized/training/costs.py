"""What a run will cost, before it starts."""

from __future__ import annotations

from torch import nn

from amortized.guidance import calls_per_image
from amortized.training.trainer import Trainer, engines


def describe(trainer: Trainer, *, num_negatives: int) -> str:
    """What would be trained, and what it would cost: the text of a dry run."""
    config, generator, guidance = trainer.config, trainer.state.generator, trainer.guidance
    prior, num_prompts = guidance.prior, len(trainer.trained)
    images = config.prompts_per_process * config.views_per_prompt
    calls = (
        images * config.accumulation * calls_per_image(guidance.config, num_negatives, prior.num_timesteps)
    )
    shares = trainer.world.size if trainer.settings.distributed.strategy == "fsdp2" else 1
    weights = sum(p.numel() * p.element_size() for p in generator.parameters()) // shares
    learned = (
        sum(p.numel() * p.element_size() for p in guidance.learned.parameters()) if guidance.learned else 0
    ) // shares
    graph = images * config.render_size**2 * trainer.settings.renderer.num_samples * BYTES_PER_SAMPLE
    memory = {
        "generator with gradients and moments": 4 * weights,
        "averaged weights": weights if config.ema_decay is not None else 0,
        "learned model with gradients and moments": 4 * learned,
        "prior": sum(p.numel() * p.element_size() for module in prior.modules() for p in module.parameters()),
        "graph of a render (rough)": graph,
        "kept trajectories at the end": trainer.cache_bytes,
    }
    lines = [
        f"# generator: {type(generator).__name__}, {_parameters(generator):,} parameters",
        *(f"#   {name}: {_parameters(part):,}" for name, part in generator.named_children()),
        *(f"#   {name} is looked up by {engine}" for name, engine in engines(generator).items()),
        f"# prior: {type(prior).__name__}, {prior.prediction_type}, images of {prior.image_size} px, "
        f"{sum(_parameters(module) for module in prior.modules()):,} parameters",
        f"# corpus: {num_prompts:,} prompts to train on; {trainer.slots_per_step} a step, "
        f"{config.steps * trainer.slots_per_step / num_prompts:.1f} visits each",
        f"# denoiser: {calls:.4g} images a step and process, {calls / images / config.accumulation:.3g} "
        "for one image",
        *(f"# memory: {size / 2**20:,.0f} MiB {name}" for name, size in memory.items() if size),
    ]
    return "\n".join(lines)


# A sample of a small head keeps about this much for the backward pass (features, hidden units,
# position); real renders lie within a factor of two.
BYTES_PER_SAMPLE = 600


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
