"""What a run will cost, before it starts."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from amortized.encodings import HashGrid
from amortized.guidance import calls_per_image
from amortized.training.metering import Meter
from amortized.training.strategies import Replicated
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
    memory = {
        "generator with gradients and moments": 4 * weights,
        "averaged weights": weights if config.ema_decay is not None else 0,
        "learned model with gradients and moments": 4 * learned,
        "prior": sum(p.numel() * p.element_size() for module in prior.modules() for p in module.parameters()),
        "kept trajectories at the end": trainer.cache_bytes,
        "step, on top of these": step_memory(trainer),
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


RAYS = 0.6  # share of all rays that is rendered, as of an object that fills most of the image


def step_memory(trainer: Trainer) -> int:
    """Bytes that forward and backward pass of a batch need at most, besides weights and gradients.

    Counted on fake tensors, which take the place of all weights: nothing can be trained afterwards. 0 where
    weights are sharded. What libraries and allocators take for themselves is not in it.
    """
    if not isinstance(trainer.strategy, Replicated) or trainer.settings.distributed.shard_prior:
        return 0
    config, objective = trainer.config, trainer.strategy.objective
    prepared = trainer._prepare(0, 0)
    meter = Meter(integer=max(1, int(RAYS * config.views_per_prompt * config.render_size**2)))
    prior = trainer.guidance.prior
    for module in (objective, *prior.modules()):
        _without_kernels(module)
        meter.fake_weights(module)
    if hasattr(prior, "graphs"):
        prior.graphs = False  # type: ignore[attr-defined]  # there is nothing to record
    with meter, meter.section("step") as cost:
        terms = objective(prepared, 0.0, True)
        (terms["loss"] + terms.get("learned", 0.0)).backward()
    gradients = (p.grad for p in objective.parameters() if p.grad is not None)
    return max(0, cost.peak - sum(gradient.nbytes for gradient in gradients))


def _without_kernels(module: nn.Module) -> None:
    """Let PyTorch look its hash grids up: native kernels read memory, which fake tensors do not have."""
    for part in module.modules():
        if isinstance(part, HashGrid):
            part.config = replace(part.config, engine="torch")


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
