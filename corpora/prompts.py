"""One prompt: validation, its id and hash, and the split that the hash puts it in."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence

from amortized.names import text_hash

MAX_CHARACTERS = 4096  # text encoders read some 77 tokens, so a longer text is not a prompt
# Characters that print nothing: Unicode's default-ignorable code points, and its annotations. Among them are
# byte order marks inside joined files, zero-width spaces and marks that reverse the direction of a line.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
SHAPING = re.compile("[\u200c\u200d\ufe00-\ufe0f\u2800]")  # of their neighbors; alone they print nothing


def prompt_id(text: str) -> str:
    """Return 16 hexadecimal digits that depend on the text alone, safe in any file name."""
    return text_hash(text)


def validate_prompt(text: str, location: str) -> str:
    """Return the prompt without surrounding whitespace and without characters that print nothing.

    Joiners and variation selectors stay, which shape the letters and emoji next to them.

    Raises:
        ValueError: the text cannot be a prompt; the message starts with `location`.
    """
    text = text.strip() if text.isascii() else INVISIBLE.sub("", text).strip()
    if is_blank(text):
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


def is_blank(text: str) -> bool:
    """Return whether nothing of the text prints."""
    return not (text if text.isascii() else SHAPING.sub("", INVISIBLE.sub("", text))).strip()


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
