"""A step of the optimizer, once gradients are there: averaged, measured, clipped, taken."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from amortized.training.distributed import World
from amortized.training.objective import Objective
from amortized.training.optim import Ema, OptimizerConfig, build_optimizer
from amortized.training.state import TrainingState
from amortized.transfer import index


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """What a generator repeats: its layers or stages."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part]


def state_of(objective: Objective, ema: Ema | None, config: OptimizerConfig) -> TrainingState:
    rate = objective.guidance.learning_rate
    return TrainingState(
        generator=objective.generator,
        ema=None if ema is None else ema.module,
        optimizer=build_optimizer(config, objective.generator, objective.learned, rate),
        learned=objective.learned,
    )


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Average the gradients that nothing else averages; one collective."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world.size > 1 and gradients:
        mean = world.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def update(
    objective: Objective, state: TrainingState, ema: Ema | None, clip_norm: float | None, step: int
) -> dict[str, Tensor]:
    """One step of a strategy whose optimizer holds all that is trained; see `Strategy.update`."""
    optimizer = state.optimizer
    norms = _norms_by_part(objective.generator)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(objective.generator.parameters(), clip_norm, norms["gradient_norm"])
    if objective.learned is not None:
        found = [p.grad for p in objective.learned.parameters() if p.grad is not None]
        norms["learned_gradient_norm"] = _whole(nn.utils.get_total_norm(found)).to(norms["gradient_norm"])
    # Weights stay finite without a wait: fused optimizers skip the update on the device where this is 1.
    finite = torch.stack(list(norms.values())).isfinite().all()
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    if not optimizer.defaults.get("fused"):
        _drop_unless(finite, [p.grad for p in objective.parameters() if p.grad is not None])
    optimizer.step()
    objective.zero_grad(set_to_none=True)
    if ema is not None:
        ema.update(objective.generator, step)
    return norms


def _norms_by_part(module: nn.Module) -> dict[str, Tensor]:
    """The norm of all gradients of a module, and of those of each of its parts where it has several."""
    named = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    norms = _whole(torch.stack(torch._foreach_norm(list(named.values()))))
    parts: dict[str, list[int]] = {}
    for place, name in enumerate(named):
        parts.setdefault(name.partition(".")[0], []).append(place)
    found = {"gradient_norm": torch.linalg.vector_norm(norms)}
    if len(parts) > 1:
        indexes = {part: index(tuple(places), norms) for part, places in parts.items()}
        found |= {f"gradient_norm/{part}": norms[places].norm() for part, places in indexes.items()}
    return found


def _drop_unless(finite: Tensor, gradients: Iterable[Tensor]) -> None:
    """Zeros in place of all gradients where `finite`, a scalar, is false."""
    for gradient in gradients:
        own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        own.copy_(torch.where(finite, own, 0.0))


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
