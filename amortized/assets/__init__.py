"""From a scene to an asset: surface, texture, file formats."""

from amortized.assets.checks import check_mesh
from amortized.assets.config import AssetConfig
from amortized.assets.formats import FORMATS, SUFFIXES, TEXTURED, save_asset
from amortized.assets.mesh import Asset, AssetError, Mesh, Source, TexturedMesh
from amortized.assets.pipeline import check_libraries, make_asset, surface

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "TEXTURED",
    "Asset",
    "AssetConfig",
    "AssetError",
    "Mesh",
    "Source",
    "TexturedMesh",
    "check_libraries",
    "check_mesh",
    "make_asset",
    "save_asset",
    "surface",
]
