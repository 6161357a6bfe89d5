"""Small pieces of messages: counted nouns, and commands that work as printed."""

from __future__ import annotations

import shlex


def count(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 prompt", "1,200 prompts"; `plural` for nouns that do not simply take an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command(*words: object) -> str:
    """A command of this program as the user can paste it into a shell: `amortized evaluate 'my run'`.

    Words in capitals stand for something to fill in.
    """
    return shlex.join(["amortized", *(str(word) for word in words)])
