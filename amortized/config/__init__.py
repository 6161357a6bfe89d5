"""Strict configs: YAML presets and dotted overrides, read into frozen dataclasses."""

from amortized.config.checks import check
from amortized.config.paths import map_paths
from amortized.config.presets import ConfigError
from amortized.config.reader import build_config, load_config
from amortized.config.schedules import (
    Schedule,
    Steps,
    check_schedule,
    check_steps,
    geometric_at,
    largest_of,
    starts_of,
    step_at,
    times_of,
    value_at,
)
from amortized.config.schema import PathText
from amortized.config.writer import config_digest, config_to_dict, config_to_yaml

__all__ = [
    "ConfigError",
    "PathText",
    "Schedule",
    "Steps",
    "build_config",
    "check",
    "check_schedule",
    "check_steps",
    "config_digest",
    "config_to_dict",
    "config_to_yaml",
    "geometric_at",
    "largest_of",
    "load_config",
    "map_paths",
    "starts_of",
    "step_at",
    "times_of",
    "value_at",
]
