"""Training: what a step sees, the step, and the care around it."""

from amortized.training.checkpoint import generator_weights, list_checkpoints, load_weights
from amortized.training.distributed import World, join_world
from amortized.training.losses import LossConfig
from amortized.training.optim import OptimizerConfig
from amortized.training.order import OrderConfig
from amortized.training.runs import describe, open_run
from amortized.training.sampler import Sampler, z_of
from amortized.training.settings import TrainerConfig, TrainingSettings
from amortized.training.trainer import Trainer
from amortized.training.watch import TrainingStopped

__all__ = [
    "LossConfig",
    "OptimizerConfig",
    "OrderConfig",
    "Sampler",
    "Trainer",
    "TrainerConfig",
    "TrainingSettings",
    "TrainingStopped",
    "World",
    "describe",
    "generator_weights",
    "join_world",
    "list_checkpoints",
    "load_weights",
    "open_run",
    "z_of",
]
