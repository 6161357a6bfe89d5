"""The gallery of recall@1: the distinct texts that an image is matched against."""

from __future__ import annotations

from collections.abc import Iterable


class Gallery:
    """Distinct texts, each with its column in a similarity matrix.

    CLIP's tokenizers ignore case and repeated whitespace, so texts that differ only in those share a
    column: otherwise a text would tie with its own copy and never be the strict best match.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Keep the first spelling of each text, in the given order."""
        self._columns: dict[str, int] = {}
        self.texts: list[str] = []
        for text in texts:
            key = _normalize(text)
            if key not in self._columns:
                self._columns[key] = len(self.texts)
                self.texts.append(text)

    def __len__(self) -> int:
        return len(self.texts)

    def column(self, text: str) -> int:
        """Return the column of a text. Raises ValueError if the gallery lacks it."""
        column = self._columns.get(_normalize(text))
        if column is None:
            raise ValueError(f"the gallery lacks {text!r}: it must hold the text of every evaluated prompt")
        return column


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())
