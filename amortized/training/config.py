"""The settings of a run, one section per component; `train.py` adds the generator's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from amortized.cameras import CameraConfig
from amortized.checkpointing import CheckpointConfig
from amortized.conditioning import TextConfig, ViewTextConfig
from amortized.config import (
    PathText,
    Schedule,
    Steps,
    check,
    check_schedule,
    check_steps,
    largest_of,
    starts_of,
    step_at,
)
from amortized.config.renamed import RENAMED_RUN_SETTINGS
from amortized.evaluation import EvaluationConfig
from amortized.guidance import GuidanceConfig
from amortized.monitoring import MonitorConfig
from amortized.parallel import DistributedConfig, OptimizerConfig
from amortized.priors import PriorConfig
from amortized.rendering import BackgroundConfig, RendererConfig
from amortized.training.losses import LossConfig
from amortized.training.prompt_order import PromptOrderConfig

# A ray takes at least 1 kB in a forward pass: beyond this, no machine has the memory.
MAX_RAYS = 2**28
MAX_SLOTS = 10**6  # of one process in one step


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The length of the training and the size of its batches."""

    steps: int = 1000
    prompts_per_process: int = 1  # prompts in one forward pass of one process
    views_per_prompt: int = 1
    gradient_accumulation_steps: int = 1  # forward passes per optimizer step
    # Train each prompt as this many assets, each with its own z and trajectory (guidance.noise=seed), the
    # same for all prompts. null: a new z at every visit, and one trajectory.
    seeds_per_prompt: int | None = None
    render_size: Steps = 64  # px; [64, 0.4, 256]: 64 until 40 % of the run, then 256
    sharpness: Schedule = 30.0  # k of the density, 1 / length; interpolated geometrically
    precision: Literal["float32", "bfloat16"] = "float32"  # of the generator; scenes are always float32
    ema_decay: float | None = None  # of the averaged weights, which evaluation prefers; null: none

    def __post_init__(self) -> None:
        check(self, "steps", at_least=1, limit=10**9)
        check(self, "prompts_per_process", "views_per_prompt", at_least=1, limit=4096)
        check_steps("render_size", self.render_size, limit=4096)
        check(self, "gradient_accumulation_steps", "seeds_per_prompt", at_least=1, limit=10**6)
        check(self, "ema_decay", above=0, below=1)
        check_schedule("sharpness", self.sharpness, positive=True)
        rays = self.prompts_per_process * self.views_per_prompt * self.max_render_size**2
        if rays > MAX_RAYS:
            raise ValueError(
                f"render_size, prompts_per_process and views_per_prompt make {rays:.2g} rays in one forward "
                f"pass, and at most {MAX_RAYS:,} are allowed: lower one of them"
            )
        if self.prompts_per_process * self.gradient_accumulation_steps > MAX_SLOTS:
            raise ValueError(
                f"gradient_accumulation_steps times prompts_per_process must be at most {MAX_SLOTS:,}, got "
                f"{self.gradient_accumulation_steps:,} times {self.prompts_per_process:,}"
            )

    @property
    def max_render_size(self) -> int:
        """The largest size of the run, px."""
        return largest_of(self.render_size)

    @property
    def largest_phase(self) -> tuple[int, int, int]:
        """The phase of the largest size, as in `phases`."""
        return max(self.phases, key=lambda phase: phase[2])

    @property
    def phases(self) -> list[tuple[int, int, int]]:
        """Each render size with the steps that have it: (first step, number of steps, px), none empty."""
        starts = starts_of(self.render_size, self.steps)
        ends = [*starts[1:], self.steps]
        parts = [(start, end - start) for start, end in zip(starts, ends, strict=True) if end > start]
        return [(start, n, step_at(self.render_size, start / self.steps)) for start, n in parts]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A further prior with its guidance, whose gradient is added to that of the run's `prior`.

    It has its own texts, timesteps and noise. `guidance.weight` is its factor in the sum.
    """

    prior: PriorConfig
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    views: ViewTextConfig | None = None  # how its texts depend on the camera; null: as the run's `views`


@dataclass(frozen=True, kw_only=True)
class BaseRunConfig:
    """One YAML preset, one section per component; `output`, `corpus` and `prior` have no default."""

    renamed: ClassVar = RENAMED_RUN_SETTINGS

    output: PathText  # the run's folder
    corpus: PathText  # the name of a corpus, or a .txt, .json, .jsonl, .csv or .parquet file of prompts
    # Hold out this share of all prompts, by a hash of their words; null: the corpus's own split.
    held_out: float | None = None
    prompt: str | None = None  # train on this prompt alone
    # Start one object from a run or an exported generator, as it shows the prompt; or splats from a .ply or
    # .splat file. Not read again when the run resumes.
    start: PathText | None = None
    prior: PriorConfig
    seed: int = 0
    device: str = "auto"  # auto: CUDA if available, the GPU of LOCAL_RANK; or cpu, cuda, cuda:N
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    # Further priors that teach the same generator with the same images, each with its guidance; null: none.
    more_teachers: tuple[TeacherConfig, ...] | None = None
    text: TextConfig = field(default_factory=TextConfig)
    views: ViewTextConfig = field(default_factory=ViewTextConfig)
    cameras: CameraConfig = field(default_factory=CameraConfig)
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    prompt_order: PromptOrderConfig = field(default_factory=PromptOrderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpointing: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitoring: MonitorConfig = field(default_factory=MonitorConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if not self.output.strip():
            raise ValueError("output is empty: name a folder for the run")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty: give a text, or null to train on the corpus")
        if self.more_teachers == ():
            raise ValueError("more_teachers is an empty list: set it to null, or add a teacher")
        for name, teacher in self.teachers.items():
            decay = teacher.guidance.learned and teacher.guidance.learned.weight_decay
            if decay and self.optimizer.name == "adam":
                raise ValueError(
                    f"{name}guidance.learned.weight_decay={decay} needs optimizer.name=adamw or adan: adam "
                    "would mix it into its moments"
                )
            if name and teacher.guidance.weight == 0:
                raise ValueError(
                    f"{name}guidance.weight is 0, so this teacher adds nothing: raise it, or remove it"
                )

    @property
    def teachers(self) -> dict[str, TeacherConfig]:
        """The prior and the further ones, each with guidance and texts, by the start of their keys."""
        first = TeacherConfig(prior=self.prior, guidance=self.guidance, views=self.views)
        more = [replace(each, views=each.views or self.views) for each in self.more_teachers or ()]
        return {"": first, **{f"more_teachers[{i}].": teacher for i, teacher in enumerate(more)}}
