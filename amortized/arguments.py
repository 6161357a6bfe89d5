"""Types of command-line options: paths, numbers in a range, names, colors."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
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


def number(at_least: float, at_most: float) -> Callable[[str], float]:
    """The type of an option that takes a number in a range."""

    def parse(value: str) -> float:
        try:
            parsed = float(value)
        except ValueError:
            parsed = math.nan
        if not math.isfinite(parsed):
            raise argparse.ArgumentTypeError(f"must be a number, got {short(value[:80])}")
        if not at_least <= parsed <= at_most:
            limit = f"at least {at_least:g}" if parsed < at_least else f"at most {at_most:g}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {value[:80]}")
        return parsed

    return parse


def names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that takes names out of a few, separated by commas; each counts once."""

    def parse(value: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(name.strip() for name in value[:1000].split(",")))
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(
                    f"must be of {', '.join(allowed)}, separated by commas, got {short(name[:80])!s}"
                )
        return chosen

    return parse


def background(value: str) -> str | float | tuple[float, float, float]:
    """A background option's value: a gray from 0 to 1, a color `#rrggbb` in [0, 1], or "environment"."""
    if value == "environment":
        return value
    if re.fullmatch("#[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value[1:])
        return red / 255, green / 255, blue / 255
    try:
        return number(0, 1)(value)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be a gray from 0 to 1, a color #rrggbb or environment, got {short(value[:80])}"
        ) from None
