"""Strict configs: YAML presets and dotted overrides, read into frozen dataclasses."""

from amortized.config.checks import check
from amortized.config.paths import map_paths
from amortized.config.presets import ConfigError
from amortized.config.reader import build_config, load_config
from amortized.config.schedules import Schedule, check_schedule, geometric_at, value_at
from amortized.config.schema import PathText
from amortized.config.writer import config_digest, config_to_dict, config_to_yaml

__all__ = [
    "ConfigError",
    "PathText",
    "Schedule",
    "build_config",
    "check",
    "check_schedule",
    "config_digest",
    "config_to_dict",
    "config_to_yaml",
    "geometric_at",
    "load_config",
    "map_paths",
    "value_at",
]
