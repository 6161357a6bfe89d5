"""Where a sentence's rows come from: memory, shards on disk, or the encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Protocol

from amortized.conditioning.rows import concatenate_rows, move_rows, take_row
from amortized.conditioning.shards import ShardStore, probe_of, same_encoder
from amortized.types import TextCondition

Sentence = tuple[str, str]  # a prompt, and what is appended to it


class SentenceEncoder(Protocol):
    """What a bank asks of a text encoder; `TextEncoder` is one."""

    def encode(self, texts: Sequence[str]) -> TextCondition:
        """N sentences => a condition of N rows."""
        ...


class SentenceSource:
    """The rows of one encoder's sentences. Shards are asked first; what they lack is encoded.

    Those used last are kept in memory, on the CPU. May be asked from two threads.
    """

    def __init__(
        self, encoder: SentenceEncoder, stores: Sequence[ShardStore] = (), *, kept: int = 1024
    ) -> None:
        """`kept` rows stay in memory; of `stores`, those of this encoder are used."""
        self.encoder, self.kept = encoder, kept
        probe = probe_of(encoder) if stores else ()
        self.stores = [store for store in stores if same_encoder(store.manifest.probe, probe)]
        self.num_encoded = 0  # sentences that no store had
        self._memory: OrderedDict[Sentence, TextCondition] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Sentences kept in memory."""
        return len(self._memory)

    def rows(self, sentences: Sequence[Sentence]) -> TextCondition:
        """A row for each sentence, on the CPU."""
        with self._lock:
            found = {sentence: self._memory[sentence] for sentence in sentences if sentence in self._memory}
            missing = [sentence for sentence in dict.fromkeys(sentences) if sentence not in found]
            found |= self._stored(missing)
            for text, suffix in missing:
                if (text, suffix) not in found:
                    # Alone, so that its last digit does not depend on which others were missing with it:
                    # a resumed run asks for them in another order.
                    found[text, suffix] = move_rows(self.encoder.encode([text + suffix]), "cpu")
                    self.num_encoded += 1
            for sentence, row in found.items():
                self._memory[sentence] = row
                self._memory.move_to_end(sentence)
            while len(self._memory) > self.kept:
                self._memory.popitem(last=False)
        return concatenate_rows([found[sentence] for sentence in sentences])

    def passing(self, sentences: Sequence[str]) -> TextCondition:
        """Rows of sentences that hardly ever come twice: encoded together, and not kept."""
        with self._lock:
            return self.encoder.encode(sentences)

    def _stored(self, sentences: Sequence[Sentence]) -> dict[Sentence, TextCondition]:
        found: dict[Sentence, TextCondition] = {}
        for store in self.stores:
            here = [pair for pair in sentences if pair not in found and store.has(pair[1])]
            texts = list(dict.fromkeys(text for text, _ in here))
            conditions = dict(zip(texts, store.find(texts), strict=True))
            for text, suffix in here:
                if (condition := conditions[text]) is not None:
                    found[text, suffix] = take_row(condition, store.row_of(suffix))
        return found
