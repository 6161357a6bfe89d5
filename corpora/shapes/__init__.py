"""The Shapes world: a procedural corpus whose every sentence has an exact ground truth."""
