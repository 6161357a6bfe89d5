"""DeepSpeed ZeRO: shards the generator's moments (stage 1), gradients (2) and weights (3).

DeepSpeed manages the generator only. The guidance's reference model is small, or lives in the denoiser:
every process holds all of it and its own optimizer, as with the ddp strategy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from amortized.parallel.optim import OptimizerConfig, build_optimizer
from amortized.parallel.state import TrainingState
from amortized.parallel.trained import Trained, blocks_of
from amortized.parallel.updates import average_gradients
from amortized.parallel.world import World

PERSISTENCE_THRESHOLD = 100_000  # stage 3 does not shard parameters with fewer elements


class DeepSpeedStrategy:
    """The strategies zero1, zero2 and zero3.

    In stage 3 every process still holds the whole EMA; the generator is gathered to update it.
    """

    def __init__(self, stage: int, trained: Trained, optimizer: OptimizerConfig, world: World) -> None:
        if optimizer.name == "adan" and stage == 3:
            raise ValueError(
                "optimizer.name=adan counts steps per parameter group, which zero3 splits up: "
                "set distributed.strategy=zero2 or fsdp2"
            )
        os.environ.setdefault("DS_ACCELERATOR", world.device.type)
        index = world.device.index  # DeepSpeed reads it from LOCAL_RANK, which a single process lacks
        os.environ["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0") if index is None else str(index)
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns about scenes: see `_keep_gathered`
        self.deepspeed: Any = deepspeed
        self.stage, self.trained, self.world = stage, trained, world
        self.collective_forward = stage == 3 and trained.ema is None
        self.base_optimizer = build_optimizer(optimizer, trained.generator)
        learned = trained.learned
        self.learned_optimizer = (
            None if learned is None else build_optimizer(optimizer, nn.Module(), trained.learned_groups)
        )
        self.engine: Any = self.deepspeed.initialize(
            model=_GeneratorOnly(trained),
            optimizer=self.base_optimizer,
            config=deepspeed_config(stage, optimizer.clip_norm, trained.batch_size),
            dist_init_required=False,
        )[0]
        if stage == 3:
            self._keep_gathered()
        self.state = DeepSpeedState(
            generator=trained.generator,
            ema=None if trained.ema is None else trained.ema.module,
            optimizer=self.learned_optimizer or torch.optim.SGD([torch.zeros(1)]),
            learned=learned,
            strategy=self,
        )

    @property
    def flat_partitions(self) -> list[Tensor]:
        """The float32 weights that this rank updates, one or several flat tensors per group."""
        zero = self.engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def __call__(self, batch: Any, progress: float, learn: tuple[bool, ...]) -> Any:
        tensors = self.engine(batch, progress, learn)
        return tree_unflatten(tensors, self.engine.module.output_spec)

    def accumulate(self, *, sync: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(sync)
        return nullcontext()

    def gathered_parameters(self) -> AbstractContextManager[None]:
        return self.gather_generator() if self.collective_forward else nullcontext()

    @contextmanager
    def gather_generator(self, *, modify: bool = False) -> Iterator[None]:
        """Context: the generator's full weights on every rank. With `modify`, in-place changes persist."""
        if self.stage < 3:
            yield
            return
        parameters = list(self.trained.generator.parameters())
        # DeepSpeed broadcasts the changes of one rank; all ranks make the same.
        with self.deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modify else None):
            yield

    def _keep_gathered(self) -> None:
        """Keep parameters outside the generator's blocks gathered for the whole step; they are small.

        DeepSpeed re-gathers a module for the backward pass when it finds tensors in the module's output.
        A generator returns a scene, in which it finds none.
        """
        in_blocks = {id(part) for block in blocks_of(self.trained.generator) for part in block.modules()}
        for module in self.trained.generator.modules():
            if id(module) not in in_blocks and any(True for _ in module.children()):
                for parameter in module.parameters(recurse=False):
                    self.deepspeed.zero.register_external_parameter(self.engine.module, parameter)
                    parameter.is_external_param = True  # type: ignore[attr-defined]

    def update(self, step: int) -> dict[str, Tensor]:
        learned = self.trained.learned
        if learned is not None and self.learned_optimizer is not None:
            average_gradients(learned.parameters(), self.world)
            gradients = [p.grad for p in learned.parameters() if p.grad is not None]
            learned_norm = nn.utils.get_total_norm(gradients)
            self.learned_optimizer.found_inf = (~learned_norm.isfinite()).float()  # type: ignore[attr-defined]
            self.learned_optimizer.step()
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), device=self.world.device)
        norms = {"gradient_norm": norm.float()}
        if learned is not None:
            norms["learned_gradient_norm"] = learned_norm.to(norms["gradient_norm"])
        self.trained.loss.zero_grad(set_to_none=True)
        if self.trained.ema is not None:
            with self.gather_generator():
                self.trained.ema.update(self.trained.generator, step)
        return norms

    def link_moments(self) -> None:
        """Make DeepSpeed map each parameter to its slice of the flat moments; stage 3 does so by itself."""
        if self.stage < 3:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()


def deepspeed_config(stage: int, clip_norm: float | None, batch_size: int) -> dict[str, Any]:
    """DeepSpeed's own config; it never reads one of the user's files."""
    return {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,  # `accumulate` sets the boundary itself
        "gradient_clipping": clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD},
        "steps_per_print": None,
    }


class _GeneratorOnly(nn.Module):
    """The loss module with only the generator registered, so that DeepSpeed manages nothing else.

    Returns a list of tensors, in which DeepSpeed finds those to hook; `output_spec` restores their structure.
    """

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.generator = trained.generator
        self._loss = (trained.loss,)  # a tuple hides it from nn.Module's registration
        self.output_spec: Any = None

    def forward(self, batch: Any, progress: float, learn: tuple[bool, ...]) -> list[Any]:
        tensors, self.output_spec = tree_flatten(self._loss[0](batch, progress, learn))
        return tensors


@dataclass(frozen=True, kw_only=True)
class DeepSpeedState(TrainingState):
    """`optimizer` is the reference model's; DeepSpeed holds the generator's moments."""

    strategy: DeepSpeedStrategy

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [*self.strategy.base_optimizer.param_groups, *([] if self.learned is None else super().groups)]

    def tensors(self) -> dict[str, Tensor]:
        """As TrainingState's, with the generator's weights and moments gathered. Collective."""
        utils, moments = self.strategy.deepspeed.utils, self.strategy.base_optimizer.state.values()
        tensors = super().tensors()
        step = next((entry["step"] for entry in moments if "step" in entry), None)
        keys = {key for entry in moments for key, value in entry.items() if value.ndim}
        if keys:
            self.strategy.link_moments()
        for name, parameter in self.generator.named_parameters():
            tensors[f"generator.{name}"] = utils.safe_get_full_fp32_param(parameter)
            for key in sorted(keys):
                moment = utils.safe_get_full_optimizer_state(parameter, key)
                tensors[f"optimizer.generator.{name}.{key}"] = moment
            if step is not None:
                tensors[f"optimizer.generator.{name}.step"] = step.clone()
        return tensors

    def load_targets(self, sizes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        targets = super().load_targets(sizes)
        for name, parameter in self.generator.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            targets[f"generator.{name}"] = torch.empty(shape, device=parameter.device)
            prefix = f"optimizer.generator.{name}."
            for moment in (moment for moment in sizes if moment.startswith(prefix)):
                size = () if moment == f"{prefix}step" else shape
                targets[moment] = torch.zeros(size, device=parameter.device)
        return targets

    def finish_loading(self, tensors: dict[str, Tensor], step: int) -> None:
        super().finish_loading(tensors, step)
        strategy, optimizer = self.strategy, self.strategy.base_optimizer
        utils = strategy.deepspeed.utils
        for group in optimizer.param_groups:
            group["step"] = step
        # 1. The weights that the forward pass uses.
        with strategy.gather_generator(modify=True), torch.no_grad():
            for name, parameter in self.generator.named_parameters():
                parameter.copy_(tensors[f"generator.{name}"])
        # 2. Empty moments for this rank's flat partitions. DeepSpeed creates them at its first update only.
        prefix = "optimizer.generator."
        moments = {name: value for name, value in tensors.items() if name.startswith(prefix)}
        keys = {name.rpartition(".")[2] for name in moments}
        count = next((value for name, value in moments.items() if name.endswith(".step")), None)
        for flat in strategy.flat_partitions if keys else ():
            optimizer.state[flat] = {key: torch.zeros_like(flat) for key in keys - {"step"}}
            if count is not None:
                optimizer.state[flat]["step"] = count.clone()
        if keys:
            strategy.link_moments()
        # 3. The float32 master weights and the moments, each rank its slice.
        for name, parameter in self.generator.named_parameters():
            utils.safe_set_full_fp32_param(parameter, tensors[f"generator.{name}"])
            for key in keys - {"step"}:
                value = moments.get(f"{prefix}{name}.{key}")
                if value is not None:
                    utils.safe_set_full_optimizer_state(parameter, value, key)
