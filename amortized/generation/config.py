"""How the scenes of a generator are made from text and rendered."""

from __future__ import annotations

from dataclasses import dataclass, field

from amortized.cameras import CameraConfig
from amortized.config import Schedule, geometric_at
from amortized.rendering import RendererConfig


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How the scenes of a generator are made from text and rendered."""

    renderer: RendererConfig = field(default_factory=RendererConfig)
    sharpness: float = 30.0  # k of the density at the checkpoint's step, 1 / length
    cameras: CameraConfig = field(default_factory=CameraConfig)  # of the training
    seed: int = 0  # the run's, from which z follows
    seeds_per_prompt: int | None = None  # as in trainer.seeds_per_prompt


def sharpness_at(schedule: Schedule, step: int, steps: int) -> float:
    """The sharpness of a generator trained for `step` of `steps` steps."""
    return geometric_at(schedule, step / steps)
