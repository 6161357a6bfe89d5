"""DeepSpeed's ZeRO: moments, gradients and weights of the generator are sharded, by stage.

DeepSpeed holds the generator alone. What guidance learns of the renders is small, or lives in the denoiser:
every process holds it, with an optimizer of its own, as the strategy ddp does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amortized.training.distributed import World
from amortized.training.objective import Objective
from amortized.training.optim import Ema, OptimizerConfig, build_optimizer
from amortized.training.state import TrainingState
from amortized.training.updates import average_gradients, blocks_of

SMALL = 100_000  # numbers: weights up to this size are not taken apart by stage 3


class Zero:
    """The strategies zero1, zero2 and zero3.

    Under the third the averaged weights are whole on every process, and the generator is gathered to be
    averaged.
    """

    def __init__(
        self, stage: int, objective: Objective, ema: Ema | None, optimizer: OptimizerConfig, world: World
    ) -> None:
        if optimizer.name == "adan" and stage == 3:
            raise ValueError(
                "optimizer.name=adan counts steps for a whole group, which zero3 takes apart: "
                "set distributed.strategy=zero2 or fsdp2"
            )
        os.environ.setdefault("DS_ACCELERATOR", world.device.type)
        index = world.device.index  # of the GPU: DeepSpeed asks LOCAL_RANK, which one process may not have
        os.environ["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0") if index is None else str(index)
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of scenes: see `_keep_gathered`
        self.deepspeed: Any = deepspeed
        self.stage, self.world = stage, world
        self.objective, self.ema = objective, ema
        learned = objective.learned
        rate = objective.guidance.learning_rate
        own = build_optimizer(optimizer, objective.generator)
        # A group of its own without decay, as in the other strategies.
        self.learning = None if learned is None else build_optimizer(optimizer, nn.Module(), learned, rate)
        self.every_process_computes = stage == 3 and ema is None
        settings = config_of(stage, optimizer.clip_norm, objective.settings.trainer.prompts_per_process)
        self.engine: Any = self.deepspeed.initialize(
            model=_GeneratorIn(objective), optimizer=own, config=settings, dist_init_required=False
        )[0]
        self.base = own
        if stage == 3:
            self._keep_gathered()
        self.state = ZeroState(
            generator=objective.generator,
            ema=None if ema is None else ema.module,
            optimizer=self.learning or torch.optim.SGD([torch.zeros(1)]),
            learned=learned,
            zero=self,
        )

    @property
    def flats(self) -> list[Tensor]:
        """The part of the weights that this process updates; one tensor, or several, a group."""
        zero = self.engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        return self.engine(*args)

    def part(self, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        return self._gathered() if self.every_process_computes else nullcontext()

    def _keep_gathered(self) -> None:
        """Let weights that a generator has outside its layers stay for the length of a step.

        DeepSpeed gathers a module's weights for the backward pass where it sees the tensors that come out of
        it, and out of a generator comes a scene. Those weights are small.
        """
        within = {id(part) for block in blocks_of(self.objective.generator) for part in block.modules()}
        for module in self.objective.generator.modules():
            if id(module) not in within and any(True for _ in module.children()):
                for parameter in module.parameters(recurse=False):
                    self.deepspeed.zero.register_external_parameter(self.engine.module, parameter)
                    parameter.is_external_param = True  # type: ignore[attr-defined]

    @contextmanager
    def _gathered(self, *, changed: bool = False) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        parameters = list(self.objective.generator.parameters())
        # Rank 0's changes are taken; all make the same.
        with self.deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None):
            yield

    def update(self, step: int) -> dict[str, Tensor]:
        learned = self.objective.learned
        if learned is not None and self.learning is not None:
            average_gradients(learned.parameters(), self.world)
            found = [p.grad for p in learned.parameters() if p.grad is not None]
            learned_norm = nn.utils.get_total_norm(found)
            self.learning.found_inf = (~learned_norm.isfinite()).float()  # type: ignore[attr-defined]
            self.learning.step()
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), device=self.world.device)
        norms = {"gradient_norm": norm.float()}
        if learned is not None:
            norms["learned_gradient_norm"] = learned_norm.to(norms["gradient_norm"])
        self.objective.zero_grad(set_to_none=True)
        if self.ema is not None:
            with self._gathered():
                self.ema.update(self.objective.generator, step)
        return norms


def config_of(stage: int, clip_norm: float | None, prompts: int) -> dict[str, Any]:
    """DeepSpeed's own settings, from ours; it never sees a file of the user's."""
    return {
        "train_micro_batch_size_per_gpu": prompts,
        "gradient_accumulation_steps": 1,  # parts are told by set_gradient_accumulation_boundary
        "gradient_clipping": clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": SMALL},
        "steps_per_print": None,
    }


class _GeneratorIn(nn.Module):
    """An objective of which DeepSpeed sees the generator's weights only."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.generator = objective.generator
        self.held = (objective,)  # in a tuple it is no submodule

    def forward(self, *args: Any) -> dict[str, Tensor]:
        return self.held[0](*args)


@dataclass(frozen=True, kw_only=True)
class ZeroState(TrainingState):
    """`optimizer` is that of what is learned; the generator's moments are with DeepSpeed."""

    zero: Zero

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [*self.zero.base.param_groups, *([] if self.learned is None else super().groups)]

    def tensors(self) -> dict[str, Tensor]:
        """As TrainingState's, the generator's gathered: all processes call it."""
        utils, base = self.zero.deepspeed.utils, self.zero.base
        found = super().tensors()
        step = next((kept["step"] for kept in base.state.values() if "step" in kept), None)
        keys = {key for kept in base.state.values() for key, value in kept.items() if value.ndim}
        if keys:
            self._link()
        for name, parameter in self.generator.named_parameters():
            found[f"generator.{name}"] = utils.safe_get_full_fp32_param(parameter)
            for key in sorted(keys):
                whole = utils.safe_get_full_optimizer_state(parameter, key)
                found[f"optimizer.generator.{name}.{key}"] = whole
            if step is not None:
                found[f"optimizer.generator.{name}.step"] = step.clone()
        return found

    def room(self, names: set[str]) -> dict[str, Tensor]:
        found = super().room(names)
        for name, parameter in self.generator.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            found[f"generator.{name}"] = torch.empty(shape, device=parameter.device)
            prefix = f"optimizer.generator.{name}."
            for kept in (kept for kept in names if kept.startswith(prefix)):
                size = () if kept == f"{prefix}step" else shape
                found[kept] = torch.zeros(size, device=parameter.device)
        return found

    def settle(self, tensors: dict[str, Tensor], step: int) -> None:
        super().settle(tensors, step)
        utils, zero = self.zero.deepspeed.utils, self.zero
        for group in zero.base.param_groups:
            group["step"] = step
        with zero._gathered(changed=True), torch.no_grad():
            for name, parameter in self.generator.named_parameters():
                parameter.copy_(tensors[f"generator.{name}"])
        prefix = "optimizer.generator."
        named = dict(self.generator.named_parameters())
        moments = {name: value for name, value in tensors.items() if name.startswith(prefix)}
        keys = {name.rpartition(".")[2] for name in moments}
        count = next((value for name, value in moments.items() if name.endswith(".step")), None)
        for flat in zero.flats if keys else ():
            zero.base.state[flat] = {key: torch.zeros_like(flat) for key in keys - {"step"}}
            if count is not None:
                zero.base.state[flat]["step"] = count.clone()
        if keys:
            self._link()
        for name, parameter in named.items():
            utils.safe_set_full_fp32_param(parameter, tensors[f"generator.{name}"])
            for key in keys - {"step"}:
                value = moments.get(f"{prefix}{name}.{key}")
                if value is not None:
                    utils.safe_set_full_optimizer_state(parameter, value, key)

    def _link(self) -> None:
        """Let DeepSpeed find each weight's moments in those of its flat tensor: it does so when asked."""
        if self.zero.stage < 3:
            self.zero.engine.optimizer._hp_optimizer_states_linked = False
            self.zero.engine.optimizer._lazy_init_hp_params_optimizer_state()
