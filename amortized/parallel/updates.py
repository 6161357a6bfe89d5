"""One optimizer step, given gradients: average, measure, clip, update."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from amortized.parallel.state import TrainingState
from amortized.parallel.trained import Trained
from amortized.parallel.world import World
from amortized.transfer import index


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Average over ranks the gradients that no wrapper averages; one all-reduce."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world.size > 1 and gradients:
        mean = world.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def update(trained: Trained, state: TrainingState, clip_norm: float | None, step: int) -> dict[str, Tensor]:
    """Take the optimizer step and update the EMA; see `Strategy.update`.

    For strategies whose one optimizer holds everything that is trained.
    """
    optimizer = state.optimizer
    # 1. Norms before clipping: of the generator, of its parts, of the reference model.
    norms = _norms_by_part(trained.generator)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(trained.generator.parameters(), clip_norm, norms["gradient_norm"])
    if trained.learned is not None:
        gradients = [p.grad for p in trained.learned.parameters() if p.grad is not None]
        norms["learned_gradient_norm"] = _total_norm(gradients).to(norms["gradient_norm"])
    # 2. Keep the weights finite without waiting for the device to answer: a fused optimizer reads
    #    `found_inf` there and skips the update; for others the gradients are zeroed there.
    finite = torch.stack(list(norms.values())).isfinite().all()
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    if not optimizer.defaults.get("fused"):
        _zero_unless(finite, [p.grad for p in trained.loss.parameters() if p.grad is not None])
    # 3. The update.
    optimizer.step()
    trained.loss.zero_grad(set_to_none=True)
    if trained.ema is not None:
        trained.ema.update(trained.generator, step)
    return norms


@torch.no_grad()
def weight_sums(state: TrainingState, device: torch.device) -> dict[str, Tensor]:
    """The sum of the absolute weights that this rank holds of each part, scalars on `device`.

    It is not finite if one of them is not, which is what it is for: one pass over the weights, no wait.
    """
    return {part: _sum_of_sizes(module).to(device) for part, module in state.modules().items()}


def _sum_of_sizes(module: nn.Module) -> Tensor:
    # DeepSpeed's stage 3 holds a rank's share of a parameter in `ds_tensor`.
    weights = [_local(getattr(weight, "ds_tensor", weight)) for weight in module.parameters()]
    sizes = torch._foreach_norm(weights, 1)
    return torch.stack([size.float() for size in sizes]).sum()


def _norms_by_part(module: nn.Module) -> dict[str, Tensor]:
    """The norm of a module's gradient, and of each child's if there are several."""
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    norms = _full(torch.stack(torch._foreach_norm(list(gradients.values()))))
    parts: dict[str, list[int]] = {}
    for row, name in enumerate(gradients):
        parts.setdefault(name.partition(".")[0], []).append(row)
    result = {"gradient_norm": torch.linalg.vector_norm(norms)}
    if len(parts) > 1:
        indexes = {part: index(tuple(rows), norms) for part, rows in parts.items()}
        result |= {f"gradient_norm/{part}": norms[rows].norm() for part, rows in indexes.items()}
    return result


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients, some of which may be sharded and others, of LoRAs, replicated."""
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    if not (sharded and whole):
        return _full(nn.utils.get_total_norm(gradients))
    norms = [_full(nn.utils.get_total_norm(part)) for part in (whole, sharded)]
    return torch.linalg.vector_norm(torch.stack(norms))


def _zero_unless(finite: Tensor, gradients: Iterable[Tensor]) -> None:
    """Set all gradients to zero if `finite`, a scalar on the device, is false."""
    for gradient in gradients:
        local = _local(gradient)
        local.copy_(torch.where(finite, local, 0.0))


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
