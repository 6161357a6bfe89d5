"""The commands: they compose the parts that a config names."""
