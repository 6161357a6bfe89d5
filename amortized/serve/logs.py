"""The log: one JSON object a line on stderr, without the text of prompts unless it is wanted."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amortized.serve.problems import dumps

LOG = logging.getLogger("amortized.serve")


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, event, and the fields given as `extra={"fields": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        data = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return dumps(data).decode()


def log(
    event: str, fields: Mapping[str, Any] | None = None, *, level: int = logging.INFO, **more: Any
) -> None:
    """Log an event, with fields as a mapping or as arguments."""
    LOG.log(level, event, extra={"fields": {**(fields or {}), **more}})


def where(error: BaseException) -> str:
    """The type of an error and the line that raised it, without its message, which may hold a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def to_stderr() -> None:
    """Write the log, and warnings of uvicorn, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("amortized", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    LOG.setLevel(logging.INFO)
