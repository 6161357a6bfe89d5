"""Encodings of points and directions, and the small MLPs on top of them."""

from amortized.encodings.hash_grid import HashGrid, HashGridConfig
from amortized.encodings.mlp import BiasFreeMLP, batched_mlp, num_mlp_weights, split_mlp_weights
from amortized.encodings.spherical_harmonics import MAX_BANDS, spherical_harmonics

__all__ = [
    "MAX_BANDS",
    "BiasFreeMLP",
    "HashGrid",
    "HashGridConfig",
    "batched_mlp",
    "num_mlp_weights",
    "spherical_harmonics",
    "split_mlp_weights",
]
