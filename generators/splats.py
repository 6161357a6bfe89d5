"""Gaussian splats of one object, trained directly: no text and no z enter.

The splats are parameters, one tensor for each kind, because each has a different learning rate. They start
as a gray ball; `load` replaces them by others, from a file or from a trained generator's surface. Density
control (`amortized.splats`) changes their number, so a checkpoint with another number of splats loads too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amortized.config import check
from amortized.splats import (
    MAX_SPLATS,
    NAMES,
    Change,
    Parameters,
    ball,
    bound,
    empty_statistics,
    parameters_of,
    replace_parameter,
)
from amortized.types import ScreenStatistics, SplatScene, TextCondition

STATISTICS = ("gradient", "visits", "radius")


@dataclass(frozen=True, kw_only=True)
class SplatsConfig:
    """Number and bounds of the splats of one object."""

    name: Literal["splats"] = "splats"
    count: int = 5000  # of the ball to start from
    ball_radius: float = 0.5  # of the ball to start from
    bounding_radius: float = 1.0
    max_anisotropy: float = 10.0  # ratio of a splat's largest and smallest scale
    max_scale: float = 0.1  # largest standard deviation, as a share of the bounding radius

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

    def forward(self, text: TextCondition, z: Tensor | None = None) -> SplatScene:
        """Return the scene; text and z are not used. Raises ValueError unless there is one prompt."""
        if len(text.pooled) != 1:
            raise ValueError(
                f"generator.name=splats is one object, but the batch has {len(text.pooled)} prompts: pass "
                "one prompt at a time"
            )
        measures = {name: self.get_buffer(f"screen_{name}")[None] for name in STATISTICS}
        return SplatScene(
            **{name: getattr(self, name)[None] for name in NAMES},
            bounding_radius=self.config.bounding_radius,
            statistics=ScreenStatistics(**measures) if self.training else None,
        )

    @property
    def splats(self) -> Parameters:
        """The parameters by name."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def count(self) -> int:
        """N."""
        return len(self.means)

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

    def change(self, change: Change, optimizer: torch.optim.Optimizer) -> None:
        """Apply a change of density control to the splats and to the optimizer that trains them."""
        for name in NAMES:
            old = getattr(self, name)
            setattr(self, name, replace_parameter(optimizer, old, change.parameters[name], change))
        self._reset_statistics()

    def _set(self, parameters: Parameters) -> None:
        for name in NAMES:
            setattr(self, name, nn.Parameter(parameters[name].detach().clone()))
        self._reset_statistics()

    def _reset_statistics(self) -> None:
        for name, value in vars(empty_statistics(self.count, self.means.detach())).items():
            self.register_buffer(f"screen_{name}", value[0])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take on the number of splats of the state before it is loaded."""
        means = state_dict.get(f"{prefix}means")
        if isinstance(means, Tensor) and means.ndim == 2 and 1 <= len(means) <= MAX_SPLATS:
            self.resize(len(means))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def resize(self, count: int) -> None:
        """Give the module `count` splats, as new parameters, before their values are loaded."""
        if count != self.count:
            rows = torch.arange(count, device=self.means.device) % self.count
            self._set({name: value[rows] for name, value in self.splats.items()})
