"""Types of command-line options: paths, and numbers in a range."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from amortized.files import check_text, checked_path
from amortized.untrusted import short


def path(text: str) -> Path:
    """A path option's value: not empty, `~` expanded."""
    return Path(path_text(text))


def path_text(text: str) -> str:
    """As `path`, for an option that also takes a name, such as that of a corpus or a Hub id."""
    try:
        return checked_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def text(value: str) -> str:
    """A text option's value: not empty, and valid UTF-8. `--prompt "$UNSET"` is a mistake, not no prompt."""
    try:
        check_text(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty: give a text, or omit the option")
    return value


def whole(at_least: int, at_most: int) -> Callable[[str], int]:
    """The type of an option that takes an integer in a range."""

    def parse(value: str) -> int:
        try:
            number = int(value) if len(value) < 40 else None
        except ValueError:
            number = None
        if number is None:
            raise argparse.ArgumentTypeError(f"must be an integer, got {short(value[:80])}")
        if not at_least <= number <= at_most:
            limit = f"at least {at_least:,}" if number < at_least else f"at most {at_most:,}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {number}")
        return number

    return parse
