"""How training is distributed: which process holds which weights, and how gradients are averaged."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from amortized.config import check
from amortized.density_control import density_controlled
from amortized.guidance import AdaptedPrior, Guidance
from amortized.parallel.optim import OptimizerConfig
from amortized.parallel.state import TrainingState
from amortized.parallel.trained import Trained, blocks_of
from amortized.parallel.updates import average_gradients, update
from amortized.parallel.world import World

Batch = TypeVar("Batch", contravariant=True)
Losses = TypeVar("Losses", covariant=True)


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How processes share the training. On a single process all strategies compute the same.

    ddp     every process holds everything; gradients are averaged
    fsdp2   weights, EMA weights, gradients and moments are sharded; each block is gathered for use
    zero1   DeepSpeed: moments are sharded
    zero2   and gradients
    zero3   and weights
    """

    strategy: Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"] = "ddp"
    shard_prior: bool = False  # shard the frozen denoiser too (FSDP2), with any strategy
    timeout_s: float = 1800.0  # without progress for this long, all processes dump their stacks and exit

    def __post_init__(self) -> None:
        check(self, "timeout_s", above=0, limit=30 * 24 * 3600)


class Strategy(Protocol[Batch, Losses]):
    """What training needs from a distribution strategy: Batch and Losses are those of the loss module."""

    collective_forward: bool  # forward passes are collective: every rank must run them, even for previews

    @property
    def state(self) -> TrainingState:
        """The state to checkpoint."""
        ...

    def __call__(self, batch: Batch, progress: float, learn: tuple[bool, ...]) -> Losses:
        """The forward pass of the loss module.

        progress  of the run, in [0, 1)
        learn     of each teacher: this step trains its reference model too
        """
        ...

    def accumulate(self, *, sync: bool) -> AbstractContextManager[None]:
        """Context: forward and backward pass of a part of a step. Gradients are averaged if `sync`."""
        ...

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Context: forward passes of the generator or its EMA on their own, outside the loss module."""
        ...

    def update(self, step: int) -> dict[str, Tensor]:
        """Take an optimizer step, update the EMA, drop the gradients.

        Returns the gradient norms before clipping: scalars, equal on all ranks. If one is not finite, the
        update was skipped or the weights are useless: stop.
        """
        ...


def build_strategy(
    config: DistributedConfig, trained: Trained, optimizer: OptimizerConfig, world: World
) -> Strategy[Any, Any]:
    """Build the strategy of a config. Wraps or shards the modules of `trained` in place.

    Raises ValueError for a combination that the strategy does not support, or if DeepSpeed is missing.
    """
    if config.strategy == "ddp":
        return DDPStrategy(trained, optimizer, world)
    if config.strategy == "fsdp2":
        return FSDP2Strategy(trained, optimizer, world)
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"distributed.strategy={config.strategy} needs deepspeed: pip install 'deepspeed>=0.19'"
        )
    from amortized.parallel.zero import DeepSpeedStrategy

    return DeepSpeedStrategy(int(config.strategy[-1]), trained, optimizer, world)


class DDPStrategy:
    """Every process holds everything; DistributedDataParallel averages the generator's gradients.

    It cannot follow parameters that density control replaces: theirs are averaged by hand.
    """

    collective_forward = False

    def __init__(self, trained: Trained, optimizer: OptimizerConfig, world: World) -> None:
        self.trained, self.clip_norm, self.world = trained, optimizer.clip_norm, world
        self.state = trained.build_state(optimizer)
        # Not every step trains the reference model, which DDP cannot express: average its gradients by hand.
        learned = [name for name, _ in trained.loss.named_parameters() if name.startswith("learned.")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trained.loss, learned)
        is_fixed = not density_controlled(trained.generator)
        wraps = world.size > 1 and is_fixed
        self.module = _wrap_ddp(trained.loss, world.device) if wraps else trained.loss
        self.unwrapped = [] if is_fixed else [trained.generator]
        self.unwrapped += [] if trained.learned is None else [trained.learned]

    def __call__(self, batch: Any, progress: float, learn: tuple[bool, ...]) -> Any:
        return self.module(batch, progress, learn)

    def accumulate(self, *, sync: bool) -> AbstractContextManager[None]:
        if isinstance(self.module, DistributedDataParallel) and not sync:
            return self.module.no_sync()
        return nullcontext()

    def gathered_parameters(self) -> AbstractContextManager[None]:
        return nullcontext()

    def update(self, step: int) -> dict[str, Tensor]:
        for module in self.unwrapped:
            average_gradients(module.parameters(), self.world)
        return update(self.trained, self.state, self.clip_norm, step)


def _wrap_ddp(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # broadcast_buffers is deprecated, but older versions lack its successor
        warnings.simplefilter("ignore", FutureWarning)
        # All ranks compute the same buffers: nothing to broadcast.
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


class FSDP2Strategy:
    """Each process holds a shard of every weight; a block is gathered while it runs.

    Parameters outside the blocks stay gathered for the whole step, because the renderer queries scenes
    after the generator's forward pass. A LoRA reference model lives in the unsharded denoiser: it is
    replicated, and its gradients are averaged by hand.
    """

    collective_forward = True

    def __init__(self, trained: Trained, optimizer: OptimizerConfig, world: World) -> None:
        self.trained, self.clip_norm, self.world = trained, optimizer.clip_norm, world
        self.averaged = None if trained.ema is None else trained.ema.module
        mesh = init_device_mesh(world.device.type, (world.size,))
        # Gather in the dtype that autocast would cast to anyway: half the traffic, the same products.
        bfloat16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
        policy = bfloat16 if trained.dtype == torch.bfloat16 else MixedPrecisionPolicy()
        parts = () if trained.learned is None else trained.learned.modules()
        adapters = [part.adapter for part in parts if isinstance(part, AdaptedPrior)]
        self.replicated = [weight for adapter in adapters for weight in adapter.parameters()]
        for module in (trained.generator, *([] if self.averaged is None else [self.averaged])):
            for block in blocks_of(module):
                fully_shard(block, mesh=mesh, mp_policy=policy)
        if self.averaged is not None:
            fully_shard(self.averaged, mesh=mesh, reshard_after_forward=False)
        fully_shard(trained.loss, mesh=mesh, reshard_after_forward=False, ignored_params=set(self.replicated))
        self.state = trained.build_state(optimizer)

    def __call__(self, batch: Any, progress: float, learn: tuple[bool, ...]) -> Any:
        return self.trained.loss(batch, progress, learn)

    def accumulate(self, *, sync: bool) -> AbstractContextManager[None]:
        self.trained.loss.set_requires_gradient_sync(sync)  # type: ignore[operator]
        self.trained.loss.set_is_last_backward(sync)  # type: ignore[operator]
        return nullcontext()

    @contextmanager
    def gathered_parameters(self) -> Iterator[None]:
        roots: list[Any] = [root for root in (self.trained.loss, self.averaged) if root is not None]
        for root in roots:
            root.unshard()
        yield
        for root in roots:
            root.reshard()

    def update(self, step: int) -> dict[str, Tensor]:
        average_gradients(self.replicated, self.world)
        return update(self.trained, self.state, self.clip_norm, step)


def shard_denoiser(guidance: Guidance, world: World) -> None:
    """Shard the frozen denoiser's weights over all processes (FSDP2); a block is gathered while it runs.

    Raises ValueError if ranks could call the denoiser a different number of times (each call is
    collective), or if the prior is not a Stable Diffusion.
    """
    denoiser, config = getattr(guidance.prior, "denoiser", None), guidance.config
    if denoiser is None or guidance.learned is not None or config.noise != "gaussian":
        raise ValueError(
            "distributed.shard_prior needs a Stable Diffusion prior that every process calls equally often: "
            "guidance.noise=gaussian and no guidance.learned; else set distributed.shard_prior=false"
        )
    guidance.prior.graphs = False  # type: ignore[attr-defined]  # CUDA graphs need weights at fixed addresses
    mesh = init_device_mesh(world.device.type, (world.size,))
    network = denoiser.network
    blocks = getattr(network, "transformer_blocks", None)  # of Stable Diffusion 3; others have a UNet
    for block in blocks or (*network.down_blocks, network.mid_block, *network.up_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
