"""From a scene to an asset: surface, texture, file formats."""

from amortized.assets.checks import check_mesh
from amortized.assets.formats import FORMATS, SUFFIXES, save_asset
from amortized.assets.mesh import Asset, AssetError, Mesh, Source, TexturedMesh

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "Asset",
    "AssetError",
    "Mesh",
    "Source",
    "TexturedMesh",
    "check_mesh",
    "save_asset",
]
