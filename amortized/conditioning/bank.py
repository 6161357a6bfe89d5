"""The text of a step: what the generator reads, and what the prior is told of each view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amortized.conditioning.rows import move_rows
from amortized.conditioning.shards import ShardStore
from amortized.conditioning.source import Sentence, SentenceEncoder, SentenceSource
from amortized.conditioning.views import (
    ViewText,
    ViewTextConfig,
    mixed_text,
    plain_text,
    view_words,
    with_constants,
)
from amortized.types import Cameras, TextCondition

Device = torch.device | str | None


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Where texts come from. A prompt that no shards hold is encoded when it is met."""

    # Folders or URLs that `python -m corpora encode` wrote, each of the prior's encoder or the generator's.
    shards: tuple[str, ...] = ()
    # What the generator reads: a folder or Hub id of a CLIP or a T5; null: the prior's words.
    encoder: str | None = None
    revision: str | None = None  # of that Hub id: a branch, tag or commit
    # Encoded sentences of each encoder that stay in memory, those used last: where a corpus with its view
    # words has more, most are encoded anew at each visit. One takes 0.3 MB for Stable Diffusion 2.1.
    cache_size: int = 8192

    def __post_init__(self) -> None:
        if self.cache_size < 1:
            raise ValueError(f"cache_size must be at least 1, got {self.cache_size}")


class TextBank:
    """Hands out encoded sentences. May be asked from two threads."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        config: ViewTextConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        reader: SentenceEncoder | None = None,
        stores: Sequence[ShardStore] = (),
        kept: int = 8192,
    ) -> None:
        """encoder  the prior's; `reader` the generator's, where that reads another one
        device   where results go, unless they are asked for elsewhere
        stores   shards of either; of one without tokens only what the generator reads is taken
        kept     encoded sentences of each encoder that stay in memory

        Raises ValueError for shards that neither can use.
        """
        self.config = config or ViewTextConfig()
        self.device = torch.device(device)
        whole = [store for store in stores if not store.manifest.pooled_only]
        self.told = SentenceSource(encoder, whole, kept=kept)
        # One memory for both, unless shards of pooled vectors alone make them differ.
        if reader is None and len(whole) == len(stores):
            self.read = self.told
        else:
            lock = self.told.lock if reader is None else None
            self.read = SentenceSource(reader or encoder, stores, kept=kept, lock=lock)
        for store in stores:
            if store not in (*self.told.stores, *self.read.stores):
                readers = f"the prior's {encoder.name}"
                readers += "" if reader is None else f" or the generator's {reader.name}"
                raise ValueError(
                    f"text.shards: {store.url} is of the encoder {store.manifest.encoder_name}, not of "
                    f"{readers}; encode the corpus with that: "
                    f"python -m corpora encode {store.manifest.corpus} --encoder FOLDER --output FOLDER"
                )

    def __len__(self) -> int:
        """Sentences kept in memory."""
        return len(self.told) + (0 if self.read is self.told else len(self.read))

    @property
    def pooled_only(self) -> bool:
        """Whether the generator is handed no tokens."""
        return self.read.pooled_only

    def shortage(self, texts: Sequence[str]) -> str | None:
        """What shards lack of these prompts, in a sentence; None where they lack nothing, or there are none.

        Numbered directions are not counted: no shards have them.
        """
        if not (self.read.stores or self.told.stores):
            return None
        lacking = {"of the prompts": 1 - self.read.share_stored([(text, "") for text in texts])}
        if not self.config.direction_step_deg:
            seen = [(text, end) for text in texts for end in self.config.suffixes]
            lacking["of their views' sentences"] = 1 - self.told.share_stored(seen)
        told = [f"{share:.0%} {what}" for what, share in lacking.items() if share > 0]
        if not told:
            return None
        return (
            f"text.shards lack {' and '.join(told)}: these are encoded when they are met, one at a time; "
            "encode the corpus with --views, or with this run's views.suffixes as --suffixes"
        )

    def get(self, texts: Sequence[str], device: Device = None) -> TextCondition:
        """The plain prompts, N rows: what a generator reads."""
        return move_rows(self.read.rows([(text, "") for text in texts]), device or self.device)

    def of_step(
        self, texts: Sequence[str], cameras: Cameras, device: Device = None
    ) -> tuple[TextCondition, ViewText]:
        """`get` and `views` of P prompts; what neither shards nor memory have is encoded together."""
        constants = [self.config.negative_prompt, "", *self.config.negatives]
        told = [(text, "") for text in constants] + self._view_sentences(texts, cameras)
        read = [(text, "") for text in texts]
        self.told.load(told + read if self.read is self.told else told)
        self.read.load(read)
        return self.get(texts, device), self.views(texts, cameras, device)

    def sentences(self, texts: Sequence[str], device: Device = None) -> TextCondition:
        """Sentences as they are, N rows: what the prior reads."""
        return move_rows(self.told.rows([(text, "") for text in texts]), device or self.device)

    def views(self, texts: Sequence[str], cameras: Cameras, device: Device = None) -> ViewText:
        """The P prompts as their V cameras see them, B = P * V rows: what guidance reads."""
        config, device = self.config, device or self.device
        unconditional = self.sentences([config.negative_prompt], device)
        if config.direction_step_deg:
            # A numbered direction hardly ever comes twice: kept, these would only fill the memory.
            words = ["".join(pair) for pair in _seen(texts, cameras, config)]
            text = plain_text(move_rows(self.told.passing(words), device), unconditional)
        else:
            rows = move_rows(self.told.rows(self._view_sentences(texts, cameras)), device)
            if config.perp_neg:
                text = mixed_text(rows, unconditional, cameras, config)
            else:
                text = plain_text(rows, unconditional)
        negatives = self.sentences(config.negatives or [""], device)
        return with_constants(
            text, empty=self.sentences([""], device), negatives=negatives, weights=config.negative_weights
        )

    def _view_sentences(self, texts: Sequence[str], cameras: Cameras) -> list[Sentence]:
        """The sentences about the cameras' views that are worth a place in memory."""
        if self.config.direction_step_deg:
            return []
        if self.config.perp_neg:
            return [(text, suffix) for text in texts for suffix in self.config.suffixes]
        return _seen(texts, cameras, self.config)


def _seen(texts: Sequence[str], cameras: Cameras, config: ViewTextConfig) -> list[Sentence]:
    """The sentence of each of the P * V images, prompt-major."""
    num_views = cameras.azimuth_deg.shape[1]
    return [(texts[image // num_views], end) for image, end in enumerate(view_words(cameras, config))]
