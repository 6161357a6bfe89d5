"""Training on many processes: world, strategies, optimizer, state."""

from amortized.parallel.ema import Ema
from amortized.parallel.optim import LearnedGroup, OptimizerConfig, build_optimizer, set_learning_rate
from amortized.parallel.state import TrainingState
from amortized.parallel.strategies import (
    DDPStrategy,
    DistributedConfig,
    Strategy,
    build_strategy,
    shard_denoiser,
)
from amortized.parallel.trained import Trained
from amortized.parallel.updates import weight_sums
from amortized.parallel.world import (
    PeerLost,
    ReportedByAnotherRank,
    StoppedTogether,
    World,
    claim_error_report,
    join_world,
)

__all__ = [
    "DDPStrategy",
    "DistributedConfig",
    "Ema",
    "LearnedGroup",
    "OptimizerConfig",
    "PeerLost",
    "ReportedByAnotherRank",
    "StoppedTogether",
    "Strategy",
    "Trained",
    "TrainingState",
    "World",
    "build_optimizer",
    "build_strategy",
    "claim_error_report",
    "join_world",
    "set_learning_rate",
    "shard_denoiser",
    "weight_sums",
]
