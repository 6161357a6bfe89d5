"""HTML from untrusted values: text, links, numbers.

Text passes through `text` or `block`, and appears as element text or attribute values only, never inside a
script.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from urllib.parse import quote

TEXT_LIMIT = 400  # characters on the page; the file that the page shows has the whole text
BLOCK_LIMIT = 2**16
# Control characters, half characters, and marks that reorder the text around them.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def text(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value as escaped text on one line, for an element or a quoted attribute."""
    return escape(one_line(value, limit))


def one_line(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value as text of at most `limit` characters on one line, for a terminal too; not escaped."""
    words = str(value)[: 64 * limit]  # a longer text is cut anyway; this bounds the work
    plain = UNSAFE.sub("\ufffd", " ".join(words.split()))
    return plain if len(plain) <= limit else f"{plain[: limit - 1]}…"


def block(value: str, limit: int = BLOCK_LIMIT) -> str:
    """A text of several lines as escaped text, for a <pre> element."""
    lines = value[: limit + 1].splitlines()
    plain = UNSAFE.sub("\ufffd", "\n".join(line.replace("\t", "    ") for line in lines))
    return escape(plain if len(plain) <= limit else f"{plain[: limit - 1]}…")


def link(path: str) -> str:
    """A relative path as an escaped URL, for a quoted attribute."""
    return escape(quote(path, errors="replace"))


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


def short_number(value: float) -> str:
    """Three significant digits."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def pairs(values: Mapping[str, object]) -> str:
    """The rows of a <dl>: a name and a value each."""
    return "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in values.items())
