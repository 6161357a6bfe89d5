"""A prompt: what one may be, its name, its hash, and which prompts are held out."""

from __future__ import annotations

import hashlib
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence

from amortized.names import text_hash

MAX_CHARACTERS = 4096  # text encoders read some 77 tokens; what is longer than this is not a prompt


def prompt_id(text: str) -> str:
    """A short name that depends on the sentence alone, safe in any file name."""
    return text_hash(text)


def checked(text: str, where: str) -> str:
    """The prompt without white space around it; raises ValueError, saying `where`, if it cannot be one."""
    text = text.strip()
    if not text:
        raise ValueError(f"{where}: the prompt is empty")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: {len(text):,} characters; a prompt has at most {MAX_CHARACTERS:,}")
    if "\0" in text:
        raise ValueError(f"{where}: holds a NUL byte; remove it")
    if not text.isprintable() and (code := _control_code(text)) is not None:
        raise ValueError(
            f"{where}: holds a control character (code {code}): remove it, and end lines by line feeds"
        )
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{where}: holds half of a surrogate pair, which is no character; remove it")
    return text


def _control_code(text: str) -> int | None:
    """Of the first control character but tab and line feed."""
    return next((ord(c) for c in text if c not in "\t\n" and unicodedata.category(c) == "Cc"), None)


def normalized(text: str) -> str:
    """The sentence as far as its words go: no case, no punctuation at the end, single spaces."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).rstrip(".!,; ")


def prompt_key(text: str) -> int:
    """A 64-bit hash of the normalized sentence: alike for sentences that differ in case or full stop."""
    return int.from_bytes(hashlib.blake2b(normalized(text).encode(), digest_size=8).digest(), "little")


def split_of(index: int, trained: Sequence[int]) -> str:
    """`train` where the ascending indices hold this one, else `heldout`."""
    place = bisect_left(trained, index)
    return "train" if place < len(trained) and trained[place] == index else "heldout"


def key_limit(share: float) -> int:
    """Prompts whose key lies below it are held out: a share of all, the same in every corpus and order.

    Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"held_out must lie in [0, 1), got {share}")
    return round(share * 2**64)
