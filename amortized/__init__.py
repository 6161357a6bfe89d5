"""Train text-to-3D generators without 3D data, by score distillation over a corpus of prompts."""

__version__ = "0.1.0"
