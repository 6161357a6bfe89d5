"""Short, stable names for texts."""

from __future__ import annotations

import hashlib


def text_hash(text: str) -> str:
    """Hash a text to 16 hexadecimal digits: safe in any file name, and usable as a 64-bit key."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
