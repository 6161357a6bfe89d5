"""The Shapes world: a procedural corpus with exact ground truth for every fully specified prompt."""
