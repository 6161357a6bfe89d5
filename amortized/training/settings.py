"""What a training reads of a run's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from amortized.cameras import CameraConfig
from amortized.config import Schedule, check_schedule
from amortized.rendering import BackgroundConfig, RendererConfig
from amortized.training.losses import LossConfig
from amortized.training.optim import OptimizerConfig
from amortized.training.order import OrderConfig


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long, how much at once, and what is kept."""

    steps: int = 1000
    prompts_per_process: int = 1  # prompts in one forward pass of one process
    views_per_prompt: int = 1
    accumulation: int = 1  # forward passes per optimizer step
    # Every prompt is trained as this many assets, each with its z and its trajectory (guidance.noise=seed),
    # the same for all prompts; null: a new z at every visit, one trajectory.
    seeds_per_prompt: int | None = None
    render_size: int = 64  # px, of training renders
    sharpness: Schedule = 30.0  # k of the density, 1 / length; schedules interpolate its logarithm
    precision: Literal["float32", "bfloat16"] = "float32"  # of the generator; scenes are float32 always
    ema_decay: float | None = None  # of averaged weights, which evaluation then prefers
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # the newest
    keep_every: int | None = None  # and, for good, those of every so many steps
    best_by: str | None = None  # and the one with the least mean of this number of log.jsonl, e.g. guidance
    upload: str | None = None  # a URL of fsspec: copies go there, and a machine without a folder starts there
    log_every: int = 1
    tracker: Literal["wandb", "trackio"] | None = None  # told what log.jsonl is
    profile: tuple[int, int] | None = None  # [from, to): the main process writes a trace of these steps
    preview_every: int = 500
    preview_prompts: int = 16
    # The scene has collapsed where mean opacity stays under or over these for `patience` steps.
    min_opacity: float = 0.005
    max_opacity: float = 0.98
    patience: int = 50

    def __post_init__(self) -> None:
        counts = "steps prompts_per_process views_per_prompt accumulation render_size checkpoint_every"
        for name in f"{counts} keep_checkpoints log_every preview_every preview_prompts patience".split():
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(f"trainer.keep_every must be at least 1 or null, got {self.keep_every}")
        if self.profile is not None and not 0 < self.profile[0] < self.profile[1]:
            raise ValueError(f"trainer.profile must be [FROM, TO], 0 < FROM < TO, got {list(self.profile)}")
        if self.seeds_per_prompt is not None and self.seeds_per_prompt < 1:
            raise ValueError(
                f"trainer.seeds_per_prompt must be at least 1 or null, got {self.seeds_per_prompt}"
            )
        check_schedule("trainer.sharpness", self.sharpness, positive=True)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"trainer.ema_decay must lie in (0, 1) or be null, got {self.ema_decay}")
        if not 0 <= self.min_opacity < self.max_opacity <= 1:
            raise ValueError(
                "trainer must satisfy 0 <= min_opacity < max_opacity <= 1, "
                f"got {self.min_opacity} and {self.max_opacity}"
            )


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How the processes share a training; in one process all strategies compute the same.

    ddp     every process holds everything, gradients are averaged
    fsdp2   weights, averaged weights, gradients and moments are sharded; a block is gathered to be used
    zero1   DeepSpeed: moments are sharded
    zero2   and gradients
    zero3   and weights
    """

    strategy: Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"] = "ddp"
    shard_prior: bool = False  # the denoiser's weights too, by FSDP2, whatever the strategy
    timeout_s: float = 1800.0  # without progress for so long, the processes end and say where they are stuck

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"distributed.timeout_s must be positive, got {self.timeout_s}")


class TrainingSettings(Protocol):
    """The sections of a run's settings that the trainer reads."""

    @property
    def output(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def cameras(self) -> CameraConfig: ...
    @property
    def background(self) -> BackgroundConfig: ...
    @property
    def renderer(self) -> RendererConfig: ...
    @property
    def losses(self) -> LossConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def order(self) -> OrderConfig: ...
    @property
    def trainer(self) -> TrainerConfig: ...
    @property
    def distributed(self) -> DistributedConfig: ...
