"""Use a trained generator, from a run or an exported folder: any text to scenes, scenes to images."""

from amortized.generation.config import SceneConfig, sharpness_at
from amortized.generation.model import TextTo3D
from amortized.generation.source import ModelSource
from amortized.generation.variants import asset_seed, asset_z, z_of, z_width

__all__ = [
    "ModelSource",
    "SceneConfig",
    "TextTo3D",
    "asset_seed",
    "asset_z",
    "sharpness_at",
    "z_of",
    "z_width",
]
