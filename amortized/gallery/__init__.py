"""The page of a folder of generated objects: a card each, with pictures, files, and the object in 3D."""

from amortized.gallery.writing import KIND, PAGE, write_page

__all__ = ["KIND", "PAGE", "write_page"]
