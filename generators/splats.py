"""Gaussian splats of one object, trained directly: no text and no z enter.

The splats are parameters, one tensor for each kind, because each has a different learning rate. They start
as a gray ball; `load` replaces them by others, from a file or from a trained generator's surface. Density
control (`amortized.splats`) changes their number: call `resize` before loading a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from amortized.config import Schedule, check, check_schedule
from amortized.splats import (
    MAX_SPLATS,
    NAMES,
    Change,
    Parameters,
    RelocationConfig,
    SplittingConfig,
    ball,
    bound,
    clone_split_prune,
    empty_statistics,
    noisy_means,
    parameters_of,
    relocate_and_grow,
    replace_parameter,
    reset_logits,
    rows,
    unchanged,
)
from amortized.types import ScreenStatistics, SplatScene, TextCondition

STATISTICS = ("gradient", "visits", "radius")


@dataclass(frozen=True, kw_only=True)
class SplatRates:
    """Learning rates of the splats' parameters; schedules are interpolated geometrically.

    They take the place of `optimizer.learning_rate`, whose warm-up and decay still apply.
    """

    means: Schedule = (1e-3, 1e-5)  # per unit of length
    colors: Schedule = 1e-2
    logits: Schedule = 5e-2
    log_scales: Schedule = 5e-3
    quaternions: Schedule = 5e-3

    def __post_init__(self) -> None:
        for name in NAMES:
            check_schedule(name, getattr(self, name), positive=True)


@dataclass(frozen=True, kw_only=True)
class SplatsConfig:
    """Number, bounds and learning rates of the splats of one object."""

    name: Literal["splats"] = "splats"
    count: int = 5000  # of the ball to start from
    ball_radius: float = 0.5  # of the ball to start from
    bounding_radius: float = 1.0
    max_anisotropy: float = 10.0  # ratio of a splat's largest and smallest scale
    max_scale: float = 0.1  # largest standard deviation, as a share of the bounding radius
    antialias: bool = True  # an object trained at one resolution looks the same at others
    # How splats are added, moved and removed; null: they stay as many as they were.
    density_control: RelocationConfig | SplittingConfig | None = field(default_factory=RelocationConfig)
    learning_rates: SplatRates = field(default_factory=SplatRates)

    def __post_init__(self) -> None:
        check(self, "count", at_least=1, limit=MAX_SPLATS)
        check(self, "bounding_radius", above=0, limit=1000)
        check(self, "max_anisotropy", at_least=1, limit=1e6)
        check(self, "max_scale", above=0, at_most=1)
        if not 0 < self.ball_radius <= self.bounding_radius:
            raise ValueError(
                f"ball_radius must be positive and at most bounding_radius {self.bounding_radius}, got "
                f"{self.ball_radius}"
            )

    @property
    def one_object(self) -> bool:
        """That it holds a single object, whatever the text."""
        return True

    def build(self, text_dim: int) -> Splats:
        """Build a ball of splats; `text_dim` is not used."""
        return Splats(self)


class Splats(nn.Module):
    """Map any text of one prompt to the same splats.

    Parameters: means [N, 3], quaternions [N, 4], log_scales [N, 3], logits [N], colors [N, 3]; see
    `SplatScene`. Buffers: the measures of renders since the last change, see `ScreenStatistics`.
    """

    rows_of = "means"
    means: nn.Parameter
    quaternions: nn.Parameter
    log_scales: nn.Parameter
    logits: nn.Parameter
    colors: nn.Parameter

    def __init__(self, config: SplatsConfig) -> None:
        super().__init__()
        self.config = config
        widths = {"means": (3,), "quaternions": (4,), "log_scales": (3,), "logits": (), "colors": (3,)}
        self._set({name: torch.zeros(config.count, *width) for name, width in widths.items()})
        if not self.means.is_meta:  # a ball needs numbers
            self._set(ball(config.count, config.ball_radius))
            self.bound()

    def forward(self, text: TextCondition, z: Tensor | None = None) -> SplatScene:
        """Return the scene; text and z are not used. Raises ValueError unless there is one prompt."""
        if len(text.pooled) != 1:
            raise ValueError(
                f"generator.name=splats is one object, but the batch has {len(text.pooled)} prompts: pass "
                "one prompt at a time"
            )
        return SplatScene(
            **{name: getattr(self, name)[None] for name in NAMES},
            bounding_radius=self.config.bounding_radius,
            antialias=self.config.antialias,
            statistics=ScreenStatistics(**self._statistics()) if self.training else None,
        )

    @property
    def splats(self) -> Parameters:
        """The parameters by name."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def count(self) -> int:
        """N."""
        return len(self.means)

    @property
    def limit(self) -> int:
        """The largest N that training can reach."""
        control = self.config.density_control
        return max(self.count, 0 if control is None else control.cap)

    @property
    def learning_rates(self) -> dict[str, Schedule]:
        """The learning rate of each parameter."""
        return {name: getattr(self.config.learning_rates, name) for name in NAMES}

    def load(self, start: Parameters | SplatScene) -> None:
        """Replace all splats, before an optimizer is built.

        Raises ValueError for a scene of several prompts.
        """
        self._set(parameters_of(start) if isinstance(start, SplatScene) else start)
        self.bound()

    def bound(self) -> None:
        """Clamp the parameters to the config's bounds; call it after each optimizer step."""
        config = self.config
        bound(
            {name: value.data for name, value in self.splats.items()},
            max_scale=config.max_scale * config.bounding_radius,
            max_anisotropy=config.max_anisotropy,
        )

    def control_density(
        self,
        optimizer: Optimizer,
        *,
        step: int,
        progress: float,
        rng: torch.Generator,
        gather: Callable[[Tensor], Tensor],
    ) -> None:
        """Change, disturb and bound the splats after an update; see `DensityControlled`."""
        control, radius = self.config.density_control, self.config.bounding_radius
        if isinstance(control, RelocationConfig):
            if control.changes_at(step, progress):
                self.change(relocate_and_grow(self.splats, control, radius, rng), optimizer)
            if control.noise:
                strength = control.noise * self._rate_of_means(optimizer)
                self.means.data.copy_(noisy_means(self.splats, strength, rng))
        elif isinstance(control, SplittingConfig):
            statistics = self._shared_statistics(gather)
            if control.densifies_at(step):
                self.change(clone_split_prune(self.splats, statistics, control, step, radius, rng), optimizer)
            if control.resets_at(step):
                limited = reset_logits(self.splats, control.reset_opacity)
                restarted = replace(unchanged(self.splats), fresh=torch.ones_like(limited, dtype=torch.bool))
                self.logits = replace_parameter(optimizer, self.logits, limited, restarted)
        self.bound()

    def change(self, change: Change, optimizer: Optimizer) -> None:
        """Apply a change of density control to the splats and to the optimizer that trains them."""
        for name in NAMES:
            old = getattr(self, name)
            setattr(self, name, replace_parameter(optimizer, old, change.parameters[name], change))
        self._reset_statistics()

    def resize(self, count: int, optimizer: Optimizer | None = None) -> None:
        """Give the module `count` splats of arbitrary values, which are loaded next.

        A count that is not 1 to a million changes nothing: what has it does not fit.
        """
        if count == self.count or not 1 <= count <= MAX_SPLATS:
            return
        source = torch.arange(count, device=self.means.device) % self.count
        change = rows(self.splats, source, torch.ones_like(source, dtype=torch.bool))
        if optimizer is None:
            self._set(change.parameters)
        else:
            self.change(change, optimizer)

    def _rate_of_means(self, optimizer: Optimizer) -> float:
        groups = optimizer.param_groups
        return next(group["lr"] for group in groups if any(p is self.means for p in group["params"]))

    def _set(self, parameters: Parameters) -> None:
        for name in NAMES:
            setattr(self, name, nn.Parameter(parameters[name].detach().clone()))
        self._reset_statistics()

    def _statistics(self) -> dict[str, Tensor]:
        """The measures since the last change [1, N]; renders add to them in place."""
        return {name: self.get_buffer(f"screen_{name}")[None] for name in STATISTICS}

    def _shared_statistics(self, gather: Callable[[Tensor], Tensor]) -> ScreenStatistics:
        """The measures, after they were made equal on all ranks: means of the ranks' sums, and maxima."""
        measures = self._statistics()
        for name, value in measures.items():
            values = gather(value)  # [ranks, N]
            value.copy_(values.amax(0) if name == "radius" else values.mean(0))
        return ScreenStatistics(**measures)

    def _reset_statistics(self) -> None:
        for name, value in vars(empty_statistics(self.count, self.means.detach())).items():
            self.register_buffer(f"screen_{name}", value[0])
