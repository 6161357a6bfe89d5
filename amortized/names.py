"""Short, stable names for texts."""

from __future__ import annotations

import hashlib
import re
import unicodedata

DIGEST_CHARACTERS = 8


def text_hash(text: str) -> str:
    """Hash a text to 16 hexadecimal digits: safe in any file name, and usable as a 64-bit key."""
    # A text that was not valid UTF-8 holds surrogates, which have no plain encoding.
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def slug(text: str, limit: int = 40) -> str:
    """A readable file name for a text: its words, then 8 hexadecimal digits of its hash.

    Lower-case ASCII letters, digits and single hyphens, at most `limit` characters, safe on any file system.
    Accents are dropped; a text without a Latin letter or digit is called "text". Two texts with the same
    words differ in the digits. Raises ValueError if `limit` is too small for a letter and the digits.
    """
    room = limit - DIGEST_CHARACTERS - 1
    if room < 1:
        raise ValueError(f"limit must be at least {DIGEST_CHARACTERS + 2}, but is {limit}")
    # A long text is cut first: the rest could not appear in the name.
    plain = unicodedata.normalize("NFKD", text[: 8 * limit]).encode("ascii", "ignore").decode().lower()
    words = re.sub("[^a-z0-9]+", "-", plain.replace("'", "")).strip("-") or "text"
    if len(words) > room:
        # Cut between words, unless the first word alone is too long.
        words = words[: room + 1].rpartition("-")[0] or words[:room]
    return f"{words.strip('-')}-{text_hash(text)[:DIGEST_CHARACTERS]}"
