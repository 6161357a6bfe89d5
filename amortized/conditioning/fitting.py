"""Texts that fit a text encoder: a prompt is cut before the words for its view are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

LEAST_PIECES = 3  # tokens of a word that the vocabulary does not know


class Tokenizing(Protocol):
    """The part of a text encoder that this module uses."""

    @property
    def max_length(self) -> int:
        """L, tokens per text."""
        ...

    def is_overlong(self, text: str) -> bool:
        """Return whether `encode` truncates the text."""
        ...

    def num_pieces(self, word: str) -> int | None:
        """Return the number of tokens of a word; None if it has a letter that is in no token."""
        ...


def fit(encoder: Tokenizing, prompt: str, suffix: str) -> str:
    """Return prompt + suffix with the last words of the prompt omitted, as many as needed for the suffix.

    Without a suffix the text is returned unchanged: the encoder cuts it at its last token.
    """
    text = prompt + suffix
    if not suffix or not encoder.is_overlong(text):
        return text
    starts = [match.start() for match in re.finditer(r"\S+", prompt)]
    if len(starts) < 2:  # a script without spaces, or a single endless word
        starts = list(range(len(prompt)))
    low, high = 0, len(starts) - 1  # units of the prompt: `low` of them fit, or none do
    while low < high:
        middle = (low + high + 1) // 2
        if encoder.is_overlong(prompt[: starts[middle]].rstrip() + suffix):
            high = middle - 1
        else:
            low = middle
    return prompt[: starts[low]].rstrip() + suffix if starts else text


def num_overlong(encoder: Tokenizing, prompts: Iterable[str], suffixes: Sequence[str] = ("",)) -> int:
    """Return the number of prompts that are cut with at least one of the suffixes."""
    return sum(any(encoder.is_overlong(prompt + suffix) for suffix in suffixes) for prompt in prompts)


def unknown_words(encoder: Tokenizing, texts: Iterable[str]) -> dict[str, int]:
    """Map each word that the vocabulary does not know to the number of texts with it, most frequent first.

    A byte-pair vocabulary spells any word. It does not know one that takes LEAST_PIECES tokens and more than
    one for two letters: "corgi" is c-or-g-i in a vocabulary of 700 words, and one token in CLIP's. By this
    measure CLIP's vocabulary knows every word in the 20,000 prompts of the public corpora.
    """
    counts: dict[str, int] = {}
    unknown: dict[str, bool] = {}
    for text in texts:
        for word in set(re.findall(r"[^\W\d_]+", text)):
            if word not in unknown:
                pieces = encoder.num_pieces(word)
                unknown[word] = pieces is None or (pieces >= LEAST_PIECES and pieces > len(word) / 2)
            if unknown[word]:
                counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
