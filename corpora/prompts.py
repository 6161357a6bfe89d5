"""One prompt: validation, its id and hash, and the split that the hash puts it in."""

from __future__ import annotations

import hashlib
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence

from amortized.names import text_hash

MAX_CHARACTERS = 4096  # text encoders read some 77 tokens, so a longer text is not a prompt


def prompt_id(text: str) -> str:
    """Return 16 hexadecimal digits that depend on the text alone, safe in any file name."""
    return text_hash(text)


def validate_prompt(text: str, location: str) -> str:
    """Return the prompt without surrounding whitespace.

    Raises:
        ValueError: the text cannot be a prompt; the message starts with `location`.
    """
    text = text.strip()
    if not text:
        raise ValueError(f"{location}: the prompt is empty")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{location}: {len(text):,} characters; a prompt has at most {MAX_CHARACTERS:,}")
    if "\0" in text:
        raise ValueError(f"{location}: contains a NUL byte; remove it")
    if not text.isprintable() and (code := _control_code(text)) is not None:
        raise ValueError(
            f"{location}: contains a control character (code {code}): remove it, "
            "and end lines with line feeds"
        )
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{location}: contains an unpaired surrogate, which is not a character; remove it")
    return text


def _control_code(text: str) -> int | None:
    """Code of the first control character other than tab and line feed."""
    return next((ord(c) for c in text if c not in "\t\n" and unicodedata.category(c) == "Cc"), None)


def normalized(text: str) -> str:
    """The prompt in case-folded NFKC with single spaces and no punctuation at the end."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).rstrip(".!,; ")


def prompt_key(text: str) -> int:
    """A 64-bit hash of the normalized prompt: case and a final period do not change it."""
    return int.from_bytes(hashlib.blake2b(normalized(text).encode(), digest_size=8).digest(), "little")


def split_of(index: int, trained: Sequence[int]) -> str:
    """`train` if the ascending indices `trained` contain this one, else `heldout`."""
    position = bisect_left(trained, index)
    return "train" if position < len(trained) and trained[position] == index else "heldout"


def key_limit(fraction: float) -> int:
    """The key below which a prompt is held out: the same fraction of every corpus, in any order.

    Raises:
        ValueError: the fraction is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"held_out must lie in [0, 1), got {fraction}")
    return round(fraction * 2**64)
