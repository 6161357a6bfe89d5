"""Small pieces of messages: counted nouns, times, and commands that work as printed."""

from __future__ import annotations

import shlex

UNITS = (("day", 86400), ("h", 3600), ("min", 60), ("s", 1))


def count(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 prompt", "1,200 prompts"; `plural` for nouns that do not simply take an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command(*words: object) -> str:
    """A command of this program as the user can paste it into a shell: `amortized evaluate 'my run'`.

    Words in capitals stand for something to fill in.
    """
    return shlex.join(["amortized", *(str(word) for word in words)])


def duration(seconds: float) -> str:
    """A time in its two largest units: "2 h 5 min", "3 days 4 h", "0.35 s"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{min(seconds, 59):.0f} s"
    for (name, size), (below, small) in zip(UNITS, UNITS[1:], strict=False):
        whole, rest = divmod(round(seconds / small), size // small)
        if whole:
            large = f"{whole:,} days" if name == "day" and whole > 1 else f"{whole} {name}"
            return f"{large} {rest} {below}" if rest else large
    raise AssertionError("a minute or more has a largest unit")
