"""Read lists of prompts in JSON, entry by entry: memory does not grow with the file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from corpora.limits import MAX_ENTRY_BYTES

BLOCK = 2**20
WHITESPACE = " \t\n\r"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the object; raise ValueError on a repeated key, of which json would keep only the last."""
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"'{name[:80]}' appears twice")
        unique[name] = value
    return unique


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


class JsonStream:
    """A JSON text that is read in blocks. At any time, MAX_ENTRY_BYTES letters lie ahead, or the rest."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name = name
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._position, self._ended = "", 0, False
        self._lines, self._counted = 1, 0  # the line number at position `_counted`

    @property
    def location(self) -> str:
        """File and line, for messages."""
        self._lines += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return f"{self.name}, line {self._lines}"

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Whether the text ahead matches a pattern."""
        return pattern.match(self._text, self._position) is not None

    def peek(self) -> str:
        """Skip whitespace; return the next character, or "" at the end."""
        while True:
            self._fill()
            while self._position < len(self._text):
                if self._text[self._position] not in WHITESPACE + "\ufeff":
                    return self._text[self._position]
                self._position += 1
            if self._ended:
                return ""

    def take(self, expected: str) -> str:
        """Skip whitespace and take one of the expected characters. Raises ValueError for another."""
        letter = self.peek()
        if not letter or letter not in expected:
            what = repr(letter) if letter else "the end of the file"
            raise ValueError(
                f"{self.location}: not valid JSON (expected {' or '.join(expected)}, not {what})"
            )
        self._position += 1
        return letter

    def value(self) -> Any:
        """Take the next value, of at most MAX_ENTRY_BYTES letters. Raises ValueError."""
        self.peek()
        try:
            value, end = DECODER.raw_decode(self._text, self._position)
        except RecursionError:
            raise ValueError(f"{self.location}: not a list of prompts, but JSON nested too deeply") from None
        except ValueError as error:
            if not self._ended and getattr(error, "pos", 0) >= self._position + MAX_ENTRY_BYTES:
                raise ValueError(self._too_long()) from None
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{self.location}: not valid JSON ({reason})") from None
        if end - self._position > MAX_ENTRY_BYTES:
            raise ValueError(self._too_long())
        self._position = end
        return value

    def items(self) -> Iterator[Any]:
        """Yield the items of the list that comes next. Raises ValueError."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def keys(self) -> Iterator[str]:
        """Yield the keys of the object that comes next; the caller takes each value. Raises ValueError."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                self.take('"')
            key = self.value()
            if key in seen:
                raise ValueError(f"{self.location}: not valid JSON ('{key[:80]}' appears twice)")
            seen.add(key)
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def end(self) -> None:
        """Raise ValueError unless nothing but whitespace is left."""
        if letter := self.peek():
            raise ValueError(f"{self.location}: not valid JSON ({letter!r} after the end of the list)")

    def _too_long(self) -> str:
        return f"{self.location}: an entry is longer than {MAX_ENTRY_BYTES:,} bytes; is it a list of prompts?"

    def _fill(self) -> None:
        while not self._ended and len(self._text) - self._position < MAX_ENTRY_BYTES + 1:
            self._lines += self._text.count("\n", self._counted, self._position)
            self._text, self._position, self._counted = self._text[self._position :], 0, 0
            data = self._file.read(BLOCK)
            self._ended = not data
            try:
                self._text += self._decoder.decode(data, final=self._ended)
            except UnicodeDecodeError as error:
                before = self._text.count("\n") + bytes(error.object).count(b"\n", 0, error.start)
                number = self._lines + before
                raise ValueError(
                    f"{self.name}, line {number}: not valid UTF-8; save the file as UTF-8"
                ) from None
