"""How a training is spread over processes: who holds which weights, and how gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from amortized.training.distributed import World
from amortized.training.objective import Objective
from amortized.training.optim import Ema, OptimizerConfig, build_optimizer
from amortized.training.settings import DistributedConfig


class Strategy(Protocol):
    """What a training asks of the processes it is spread over."""

    optimizer: torch.optim.Optimizer
    every_process_computes: bool  # a forward pass is for all at once, also one that only the main one needs

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        """The objective."""
        ...

    def part(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward pass of a part of a step; gradients are averaged at the last."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Around forward passes of the generator, or of its average, without the objective."""
        ...

    def update(self, clip_norm: float | None) -> dict[str, Tensor]:
        """One step of the optimizer, left out on the device where a gradient is not finite; the norms of
        the gradients before clipping, scalars equal on all processes."""
        ...


def spread(
    config: DistributedConfig, objective: Objective, ema: Ema | None, optimizer: OptimizerConfig, world: World
) -> Strategy:
    """The strategy of a config. The objective's modules, and the averaged ones, are changed in place."""
    if config.strategy == "fsdp2":
        return Sharded(objective, ema, optimizer, world)
    return Replicated(objective, optimizer, world)


class Replicated:
    """Every process holds everything; DistributedDataParallel averages what the generator is to learn."""

    every_process_computes = False

    def __init__(self, objective: Objective, optimizer: OptimizerConfig, world: World) -> None:
        self.objective, self.world = objective, world
        self.optimizer = _optimizer(objective, optimizer)
        # The learned model's gradients are averaged by hand, as not every step has some.
        learned = [name for name, _ in objective.named_parameters() if name.startswith("learned.")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, learned)
        ids = [world.device.index] if world.device.type == "cuda" else None
        self.model = (
            objective
            if world.size == 1
            else DistributedDataParallel(
                objective,
                device_ids=ids,
                broadcast_buffers=False,  # all processes compute the same ones
            )
        )

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        return self.model(*args)

    def part(self, last: bool) -> AbstractContextManager[None]:
        return (
            self.model.no_sync()
            if isinstance(self.model, DistributedDataParallel) and not last
            else nullcontext()
        )

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def update(self, clip_norm: float | None) -> dict[str, Tensor]:
        if self.objective.learned is not None:
            _average(self.objective.learned.parameters(), self.world)
        return _update(self.objective, self.optimizer, clip_norm)


class Sharded:
    """Each process holds its part of every weight (FSDP2); blocks are gathered while they are used.

    What is outside the blocks is gathered for the whole step, since scenes are still asked after the
    generator's forward pass. A LoRA lives in the denoiser, which is not sharded: it is replicated.
    """

    every_process_computes = True

    def __init__(
        self, objective: Objective, ema: Ema | None, optimizer: OptimizerConfig, world: World
    ) -> None:
        self.objective, self.world = objective, world
        self.averaged = None if ema is None else ema.module
        mesh = init_device_mesh(world.device.type, (world.size,))
        adapter = getattr(objective.learned, "adapter", None)
        self.replicated = [] if adapter is None else list(adapter.parameters())
        for module in (objective.generator, *([] if self.averaged is None else [self.averaged])):
            for block in _blocks(module):
                fully_shard(block, mesh=mesh)
        if self.averaged is not None:
            fully_shard(self.averaged, mesh=mesh, reshard_after_forward=False)
        fully_shard(objective, mesh=mesh, reshard_after_forward=False, ignored_params=set(self.replicated))
        self.optimizer = _optimizer(objective, optimizer)

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        return self.objective(*args)

    def part(self, last: bool) -> AbstractContextManager[None]:
        self.objective.set_requires_gradient_sync(last)  # type: ignore[attr-defined]
        self.objective.set_is_last_backward(last)  # type: ignore[attr-defined]
        return nullcontext()

    @contextmanager
    def whole(self) -> Iterator[None]:
        roots: list[Any] = [root for root in (self.objective, self.averaged) if root is not None]
        for root in roots:
            root.unshard()
        yield
        for root in roots:
            root.reshard()

    def update(self, clip_norm: float | None) -> dict[str, Tensor]:
        _average(self.replicated, self.world)
        return _update(self.objective, self.optimizer, clip_norm)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """What a generator repeats: its layers or stages."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part]


def _optimizer(objective: Objective, config: OptimizerConfig) -> torch.optim.Optimizer:
    return build_optimizer(config, objective.generator, objective.learned, objective.guidance.learning_rate)


def _average(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Average the gradients that nothing else averages; one collective."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world.size > 1 and gradients:
        mean = world.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _update(
    objective: Objective, optimizer: torch.optim.Optimizer, clip_norm: float | None
) -> dict[str, Tensor]:
    limit = clip_norm or float("inf")
    norm = _whole(nn.utils.clip_grad_norm_(objective.generator.parameters(), limit))
    norms = {"gradient_norm": norm}
    if objective.learned is not None:
        found = [p.grad for p in objective.learned.parameters() if p.grad is not None]
        norms["learned_gradient_norm"] = _whole(nn.utils.get_total_norm(found)).to(norm)
    # Fused optimizers skip the update on the device where this is 1: weights stay finite without a wait.
    finite = torch.stack(list(norms.values())).isfinite().all()
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    return norms


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
