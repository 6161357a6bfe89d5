"""The network is used on request only: the libraries of the Hugging Face Hub stay offline unless allowed.

`local_files_only=True` is not enough: some loaders of these libraries ask the Hub about a model all the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
NO_TELEMETRY = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY")

P = ParamSpec("P")
T = TypeVar("T")


def network_on_request(load: Callable[P, T]) -> Callable[P, T]:
    """`load` with the Hub's libraries offline, unless it is called with `allow_network=True`."""

    @wraps(load)
    def loaded(*args: P.args, **kwargs: P.kwargs) -> T:
        with hub_access(bool(kwargs.get("allow_network", False))):
            return load(*args, **kwargs)

    return loaded


@contextmanager
def hub_access(allowed: bool) -> Iterator[None]:
    """Context: the Hub's libraries are offline unless `allowed`, whether they are imported yet or not.

    Telemetry is off in both cases. Variables that the user has set are respected: with HF_HUB_OFFLINE=1,
    `allowed` changes nothing.
    """
    variables = NO_TELEMETRY if allowed else (*OFFLINE, *NO_TELEMETRY)
    before = {name: os.environ.get(name) for name in variables}
    constants = _constants()
    was_offline = constants.HF_HUB_OFFLINE if constants else _is_set(before.get("HF_HUB_OFFLINE"))
    os.environ.update(dict.fromkeys(variables, "1"))
    if constants and not allowed:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if constants := _constants():
            constants.HF_HUB_OFFLINE = was_offline  # read at its import, which may have been in the block


def _constants() -> Any:
    """The module in which the Hub's library has what it read from the environment; None before its import."""
    return sys.modules.get("huggingface_hub.constants")


def _is_set(value: str | None) -> bool:
    """Whether the Hub's library takes a variable for true."""
    return value is not None and value.upper() in ("1", "ON", "YES", "TRUE")
