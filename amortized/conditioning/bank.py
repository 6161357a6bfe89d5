"""The text of a step: what the generator reads, and what the prior is told of each view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amortized.conditioning.rows import move_rows
from amortized.conditioning.shards import ShardStore
from amortized.conditioning.source import SentenceEncoder, SentenceSource
from amortized.conditioning.views import (
    ViewText,
    ViewTextConfig,
    plain_text,
    view_text,
    view_words,
    with_constants,
)
from amortized.types import Cameras, TextCondition


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Where texts come from. A prompt that no shards hold is encoded when it is met."""

    # Folders or URLs that `python -m corpora encode` wrote, each of the prior's encoder or the generator's.
    shards: tuple[str, ...] = ()
    # What the generator reads: a folder or Hub id of a CLIP or a T5; null: the prior's words.
    encoder: str | None = None
    kept: int = 1024  # sentences of each encoder that stay in memory, those used last

    def __post_init__(self) -> None:
        if self.kept < 1:
            raise ValueError(f"text.kept must be at least 1, got {self.kept}")


class TextBank:
    """Hands out encoded sentences on its device. May be asked from two threads."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        config: ViewTextConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        reader: SentenceEncoder | None = None,
        stores: Sequence[ShardStore] = (),
        kept: int = 1024,
    ) -> None:
        """encoder  the prior's; `reader` the generator's, where that reads another one
        stores   shards of either; of one without tokens only what the generator reads is taken
        kept     sentences of each encoder that stay in memory

        Raises ValueError for shards of neither encoder.
        """
        self.config = config or ViewTextConfig()
        self.device = torch.device(device)
        whole = [store for store in stores if not store.manifest.pooled_only]
        self.told = SentenceSource(encoder, whole, kept=kept)
        # One memory for both, unless shards of pooled vectors alone make them differ.
        alike = reader is None and len(whole) == len(stores)
        self.read = self.told if alike else SentenceSource(reader or encoder, stores, kept=kept)
        for store in stores:
            if store not in (*self.told.stores, *self.read.stores):
                raise ValueError(
                    f"text.shards: {store.url} is of the encoder {store.manifest.encoder}, neither the "
                    "prior's nor the generator's; encode the corpus with theirs: python -m corpora encode "
                    f"{store.manifest.corpus} --encoder FOLDER --output FOLDER"
                )

    def __len__(self) -> int:
        """Sentences kept in memory."""
        return len(self.told) + (0 if self.read is self.told else len(self.read))

    @property
    def pooled_only(self) -> bool:
        """Whether the generator is handed no tokens."""
        return any(store.manifest.pooled_only for store in self.read.stores)

    def get(self, texts: Sequence[str]) -> TextCondition:
        """The plain prompts, N rows: what a generator reads."""
        return move_rows(self.read.rows([(text, "") for text in texts]), self.device)

    def sentences(self, texts: Sequence[str]) -> TextCondition:
        """Sentences as they are, N rows: what the prior reads."""
        return move_rows(self.told.rows([(text, "") for text in texts]), self.device)

    def views(self, texts: Sequence[str], cameras: Cameras) -> ViewText:
        """The P prompts as their V cameras see them, B = P * V rows: what guidance reads."""
        config = self.config
        unconditional = self.sentences([config.negative_prompt])
        if config.direction_step_deg == 0:
            pairs = [(text, suffix) for text in texts for suffix in config.suffixes]
            text = view_text(move_rows(self.told.rows(pairs), self.device), unconditional, cameras, config)
        else:
            num_views = cameras.azimuth_deg.shape[1]
            words = view_words(cameras, config)
            sentences = [texts[image // num_views] + seen for image, seen in enumerate(words)]
            # A numbered direction hardly ever comes twice: kept, these would only fill the memory.
            text = plain_text(move_rows(self.told.passing(sentences), self.device), unconditional)
        negatives = self.sentences(config.negatives or [""])
        return with_constants(
            text, empty=self.sentences([""]), negatives=negatives, weights=config.negative_weights
        )
