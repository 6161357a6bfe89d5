"""How a training is spread over processes: who holds which weights, and how gradients are averaged."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from amortized.guidance import Guidance
from amortized.training.distributed import World
from amortized.training.objective import Objective
from amortized.training.optim import Ema, OptimizerConfig
from amortized.training.settings import DistributedConfig
from amortized.training.state import TrainingState
from amortized.training.updates import average_gradients, blocks_of, state_of, update


class Strategy(Protocol):
    """What a training asks of the processes it is spread over."""

    every_process_computes: bool  # a forward pass is for all at once, also one that only the main one needs

    @property
    def state(self) -> TrainingState:
        """What a checkpoint keeps."""
        ...

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        """The objective."""
        ...

    def part(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward pass of a part of a step; gradients are averaged at the last."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Around forward passes of the generator, or of its average, without the objective."""
        ...

    def update(self, step: int) -> dict[str, Tensor]:
        """One step of the optimizer and of the averaged weights; gradients are dropped.

        Returns the norms of the gradients before clipping, scalars equal on all processes. Where one is not
        finite, weights are no longer of use.
        """
        ...


def spread(
    config: DistributedConfig, objective: Objective, ema: Ema | None, optimizer: OptimizerConfig, world: World
) -> Strategy:
    """The strategy of a config. The objective's modules, and the averaged ones, are changed in place.

    Raises ValueError for what a strategy cannot do.
    """
    if config.strategy == "ddp":
        return Replicated(objective, ema, optimizer, world)
    if config.strategy == "fsdp2":
        return Sharded(objective, ema, optimizer, world)
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"distributed.strategy={config.strategy} needs deepspeed: pip install 'amortized3d[distributed]'"
        )
    from amortized.training.zero import Zero

    return Zero(int(config.strategy[-1]), objective, ema, optimizer, world)


class Replicated:
    """Every process holds everything; DistributedDataParallel averages what the generator is to learn."""

    every_process_computes = False

    def __init__(
        self, objective: Objective, ema: Ema | None, optimizer: OptimizerConfig, world: World
    ) -> None:
        self.objective, self.ema, self.config, self.world = objective, ema, optimizer, world
        self.state = state_of(objective, ema, optimizer)
        # The learned model's gradients are averaged by hand, as not every step has some.
        learned = [name for name, _ in objective.named_parameters() if name.startswith("learned.")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, learned)
        self.model = objective if world.size == 1 else _replicated(objective, world.device)

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

    def update(self, step: int) -> dict[str, Tensor]:
        if self.objective.learned is not None:
            average_gradients(self.objective.learned.parameters(), self.world)
        return update(self.objective, self.state, self.ema, self.config.clip_norm, step)


def _replicated(objective: Objective, device: torch.device) -> DistributedDataParallel:
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # what is to come in place of broadcast_buffers is not in all versions
        warnings.simplefilter("ignore", FutureWarning)
        # All processes compute the same buffers.
        return DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False)


class Sharded:
    """Each process holds its part of every weight (FSDP2); blocks are gathered while they are used.

    What is outside the blocks is gathered for the whole step, since scenes are still asked after the
    generator's forward pass. A LoRA lives in the denoiser, which is not sharded: it is replicated.
    """

    every_process_computes = True

    def __init__(
        self, objective: Objective, ema: Ema | None, optimizer: OptimizerConfig, world: World
    ) -> None:
        self.objective, self.ema, self.config, self.world = objective, ema, optimizer, world
        self.averaged = None if ema is None else ema.module
        mesh = init_device_mesh(world.device.type, (world.size,))
        # Blocks are gathered as what autocast would make of them: half the traffic, the same products.
        half = objective.settings.trainer.precision == "bfloat16"
        halved = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
        policy = halved if half else MixedPrecisionPolicy()
        adapter = getattr(objective.learned, "adapter", None)
        self.replicated = [] if adapter is None else list(adapter.parameters())
        for module in (objective.generator, *([] if self.averaged is None else [self.averaged])):
            for block in blocks_of(module):
                fully_shard(block, mesh=mesh, mp_policy=policy)
        if self.averaged is not None:
            fully_shard(self.averaged, mesh=mesh, reshard_after_forward=False)
        fully_shard(objective, mesh=mesh, reshard_after_forward=False, ignored_params=set(self.replicated))
        self.state = state_of(objective, ema, optimizer)

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

    def update(self, step: int) -> dict[str, Tensor]:
        average_gradients(self.replicated, self.world)
        return update(self.objective, self.state, self.ema, self.config.clip_norm, step)


def shard_denoiser(guidance: Guidance, world: World) -> None:
    """Let each process hold its part of the frozen denoiser; a block is gathered to be used.

    Raises ValueError where processes would not ask it equally often, or where it has no blocks to take apart.
    """
    unet, config = getattr(guidance.prior, "unet", None), guidance.config
    if unet is None or guidance.learned is not None or config.noise != "gaussian":
        raise ValueError(
            "distributed.shard_prior needs a Stable Diffusion that all processes ask equally often, with "
            "nothing learned of the renders and guidance.noise=gaussian: set it to false"
        )
    guidance.prior.graphs = False  # type: ignore[attr-defined]  # weights that are gathered do not stay in place
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(unet, mesh=mesh)
