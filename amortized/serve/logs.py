"""The log: one JSON object a line on stderr, without the text of prompts unless it is wanted."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Context: write the log, and warnings of uvicorn, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in ("amortized", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
