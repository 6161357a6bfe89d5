"""The settings that determine a run, all but the generator's: those come with the generators."""

from __future__ import annotations

from dataclasses import dataclass, field

from amortized.cameras import CameraConfig
from amortized.conditioning import TextConfig, ViewTextConfig
from amortized.evaluation import EvaluationConfig
from amortized.guidance import GuidanceConfig
from amortized.priors import PriorConfig
from amortized.rendering import BackgroundConfig, RendererConfig
from amortized.training import DistributedConfig, LossConfig, OptimizerConfig, OrderConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One YAML preset, a section a room; `output`, `corpus` and `prior` have no default."""

    output: str  # the run's folder
    corpus: str  # the name of a corpus, or a .txt, .json, .jsonl, .csv or .parquet file of prompts
    # This share of all prompts, by a hash of their words, is never trained on; null: the corpus' own split.
    held_out: float | None = None
    prompt: str | None = None  # train this one alone, through the same path
    prior: PriorConfig
    seed: int = 0
    device: str = "auto"  # CUDA where there is one; of several the one of LOCAL_RANK, or cuda:N
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    text: TextConfig = field(default_factory=TextConfig)
    views: ViewTextConfig = field(default_factory=ViewTextConfig)
    cameras: CameraConfig = field(default_factory=CameraConfig)
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    order: OrderConfig = field(default_factory=OrderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
