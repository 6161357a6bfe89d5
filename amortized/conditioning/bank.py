"""An in-memory store of encoded sentences, for corpora that fit in memory.

A prompt takes five sentences (plain and four views) of 4 * (L + 1) * D bytes each: for Stable
Diffusion 2.1 (L 77, D 1024) that is 1.6 MB a prompt, so 10,000 prompts need 16 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from amortized.conditioning.rows import concatenate_rows, move_rows
from amortized.conditioning.views import (
    ViewText,
    ViewTextConfig,
    plain_text,
    view_text,
    view_words,
    with_constants,
)
from amortized.types import Cameras, TextCondition


class SentenceEncoder(Protocol):
    """What a bank asks of a text encoder; `TextEncoder` is one."""

    def encode(self, texts: Sequence[str]) -> TextCondition:
        """N sentences => a condition of N rows."""
        ...


class TextBank:
    """Encodes each distinct sentence once, but for numbered directions, and hands it out on its device."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        config: ViewTextConfig | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Results go to `device`."""
        self.encoder = encoder
        self.config = config or ViewTextConfig()
        self.device = torch.device(device)
        self._cache: dict[str, TextCondition] = {}  # one row each, CPU float32

    def __len__(self) -> int:
        """Distinct sentences kept so far."""
        return len(self._cache)

    def get(self, texts: Sequence[str]) -> TextCondition:
        """The plain prompts, N rows: what a generator reads."""
        self._encode_missing(texts)
        return move_rows(concatenate_rows([self._cache[text] for text in texts]), self.device)

    def views(self, texts: Sequence[str], cameras: Cameras) -> ViewText:
        """The P prompts as their V cameras see them, B = P * V rows: what guidance reads."""
        config = self.config
        unconditional = self.get([config.negative_prompt])
        if config.direction_step_deg == 0:
            text = view_text(self.get(self._view_sentences(texts)), unconditional, cameras, config)
        else:
            num_views = cameras.azimuth_deg.shape[1]
            words = view_words(cameras, config)
            sentences = [texts[image // num_views] + seen for image, seen in enumerate(words)]
            # A numbered direction hardly ever comes twice: kept, these would only fill the memory.
            text = plain_text(move_rows(self.encoder.encode(sentences), self.device), unconditional)
        negatives = self.get(config.negatives or [""])
        return with_constants(
            text, empty=self.get([""]), negatives=negatives, weights=config.negative_weights
        )

    def _view_sentences(self, texts: Iterable[str]) -> list[str]:
        return [sentence for text in texts for sentence in self.config.texts(text)]

    def _encode_missing(self, sentences: Iterable[str]) -> None:
        for text in sentences:
            if text not in self._cache:
                # Alone, so that its last digit does not depend on which others were missing with it:
                # a resumed run asks for them in another order.
                self._cache[text] = move_rows(self.encoder.encode([text]), "cpu")
