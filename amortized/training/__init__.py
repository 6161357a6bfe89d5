"""Training: trainer, objective, batches, prompt order, prefetch, losses, regularizers, costs."""

from amortized.training.batches import BatchSampler
from amortized.training.config import BaseRunConfig, TeacherConfig, TrainerConfig
from amortized.training.costs import describe, measure
from amortized.training.endings import exit_at_once
from amortized.training.losses import LossConfig
from amortized.training.prompt_order import PromptOrderConfig
from amortized.training.teachers import Teacher
from amortized.training.trainer import Trainer

__all__ = [
    "BaseRunConfig",
    "BatchSampler",
    "LossConfig",
    "PromptOrderConfig",
    "Teacher",
    "TeacherConfig",
    "Trainer",
    "TrainerConfig",
    "describe",
    "exit_at_once",
    "measure",
]
