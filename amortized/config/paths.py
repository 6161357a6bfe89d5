"""The paths in a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from amortized.config.schema import PathText, fields_of, hints_of, options_of

T = TypeVar("T")


def map_paths(config: T, change: Callable[[str], str]) -> T:
    """A copy of a config with `change` applied to every field of the type PathText, in all sections."""
    changed: dict[str, Any] = {}
    for name in fields_of(type(config)):
        value = getattr(config, name)
        options = options_of(hints_of(type(config))[name])
        if dataclasses.is_dataclass(value):
            changed[name] = map_paths(value, change)
        elif isinstance(value, tuple) and any(dataclasses.is_dataclass(one) for one in value):
            changed[name] = tuple(map_paths(one, change) for one in value)
        elif isinstance(value, str) and PathText in options:
            changed[name] = change(value)
        elif isinstance(value, tuple) and tuple[PathText, ...] in options:
            changed[name] = tuple(change(one) for one in value)
    return dataclasses.replace(config, **changed)  # pyright: ignore[reportArgumentType]
