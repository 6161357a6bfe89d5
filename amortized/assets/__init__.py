"""From a scene to an asset: surface, texture, file formats."""

from amortized.assets.mesh import Asset, Mesh, Source, TexturedMesh

__all__ = ["Asset", "Mesh", "Source", "TexturedMesh"]
