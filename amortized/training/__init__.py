"""Training: what a step sees, the step, and the care around it."""

from amortized.training.checkpoint import list_checkpoints, load_generator
from amortized.training.costs import describe
from amortized.training.distributed import PeerLost, SaidElsewhere, World, join_world
from amortized.training.losses import LossConfig
from amortized.training.optim import OptimizerConfig
from amortized.training.order import OrderConfig
from amortized.training.runs import Resume, open_run
from amortized.training.sampler import Sampler, z_of
from amortized.training.settings import DistributedConfig, TrainerConfig, TrainingSettings
from amortized.training.trainer import Trainer
from amortized.training.watch import TrainingStopped

__all__ = [
    "DistributedConfig",
    "LossConfig",
    "OptimizerConfig",
    "OrderConfig",
    "PeerLost",
    "SaidElsewhere",
    "Resume",
    "Sampler",
    "Trainer",
    "TrainerConfig",
    "TrainingSettings",
    "TrainingStopped",
    "World",
    "describe",
    "join_world",
    "list_checkpoints",
    "load_generator",
    "open_run",
    "z_of",
]
