"""Where a sentence's rows come from: shards on disk, memory, or the encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import RLock
from typing import Protocol

import torch

from amortized.conditioning.rows import concatenate_rows, move_rows, take_rows, without_tokens
from amortized.conditioning.shards import ShardStore, probe_of, same_encoder
from amortized.types import TextCondition

Sentence = tuple[str, str]  # a prompt, and what is appended to it
# Records of shards that stay in memory: a step asks for a prompt twice, for the generator and for the prior.
NUM_RECORDS = 64


class SentenceEncoder(Protocol):
    """What a bank asks of a text encoder; `TextEncoder` is one."""

    name: str  # what sentences call it: its folder or Hub id, and the revision

    @property
    def batch_size(self) -> int:
        """How many sentences to ask for at once."""
        ...

    def encode(self, texts: Sequence[str]) -> TextCondition:
        """N sentences => a condition of N rows."""
        ...

    def fingerprint(self) -> str:
        """Its precision, and a digest of its weights and words: "float32 0123456789abcdef"."""
        ...


class SentenceSource:
    """The rows of one encoder's sentences, on the CPU. May be asked from two threads.

    What shards hold is read there at each visit; what they lack is encoded, and the sentences used last stay
    in memory.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        stores: Sequence[ShardStore] = (),
        *,
        kept: int = 8192,
        lock: RLock | None = None,
    ) -> None:
        """kept    encoded sentences that stay in memory
        stores  those of this encoder are used; where one is without tokens, so are all rows
        lock    of the encoder, where another source uses it too
        """
        self.encoder, self.kept = encoder, kept
        known = (encoder.fingerprint(), probe_of(encoder)) if stores else ("", ())
        self.stores = [store for store in stores if same_encoder(store.manifest, *known)]
        self.pooled_only = any(store.manifest.pooled_only for store in self.stores)
        self.lock = lock or RLock()
        self.num_encoded = 0  # sentences so far that no store had
        self._memory: OrderedDict[Sentence, TextCondition] = OrderedDict()
        self._records: OrderedDict[tuple[int, str], TextCondition | None] = OrderedDict()

    def __len__(self) -> int:
        """Encoded sentences in memory."""
        return len(self._memory)

    def rows(self, sentences: Sequence[Sentence]) -> TextCondition:
        """A row for each sentence."""
        with self.lock:
            found = self._found(list(dict.fromkeys(sentences)))
            _shrink(self._memory, self.kept)
        return concatenate_rows([found[sentence] for sentence in sentences])

    def load(self, sentences: Sequence[Sentence]) -> None:
        """Encode those of the sentences that neither shards nor memory have, together, for `rows` to find."""
        with self.lock:
            # Before memory shrinks to its size, the caller takes its rows.
            self._found(list(dict.fromkeys(sentences)))

    def share_stored(self, sentences: Sequence[Sentence]) -> float:
        """The share of the sentences that some store has; nothing is read."""
        found = (any(s.has(end) and s.holds(text) for s in self.stores) for text, end in sentences)
        return sum(found) / len(sentences)

    def passing(self, sentences: Sequence[str]) -> TextCondition:
        """Rows of sentences that hardly ever come twice: encoded together, and not kept."""
        with self.lock:
            return move_rows(self.encoder.encode(sentences), "cpu")

    def _found(self, sentences: Sequence[Sentence]) -> dict[Sentence, TextCondition]:
        """A row for each of some different sentences."""
        found = self._stored(sentences)
        asked = [sentence for sentence in sentences if sentence not in found]
        self._encode([sentence for sentence in asked if sentence not in self._memory])
        for sentence in asked:
            self._memory.move_to_end(sentence)
            found[sentence] = self._memory[sentence]
        return found

    def _encode(self, sentences: Sequence[Sentence]) -> None:
        """Put sentences into memory, a full batch of the encoder at a time.

        Always a full one, so that a row's last digit does not depend on how many others were missing with
        it: a resumed run asks for them in another order.
        """
        size = self.encoder.batch_size
        for start in range(0, len(sentences), size):
            batch = sentences[start : start + size]
            texts = ["".join(sentence) for sentence in batch]
            encoded = move_rows(self.encoder.encode([*texts, *[""] * (size - len(texts))]), "cpu")
            for place, sentence in enumerate(batch):
                row = take_rows(encoded, torch.tensor([place]))
                self._memory[sentence] = without_tokens(row) if self.pooled_only else row
        self.num_encoded += len(sentences)

    def _stored(self, sentences: Sequence[Sentence]) -> dict[Sentence, TextCondition]:
        found: dict[Sentence, TextCondition] = {}
        for number, store in enumerate(self.stores):
            here = [pair for pair in sentences if pair not in found and store.has(pair[1])]
            texts = list(dict.fromkeys(text for text, _ in here))
            new = [text for text in texts if (number, text) not in self._records]
            records = {text: self._records[number, text] for text in texts if text not in new}
            records |= dict(zip(new, store.find(new), strict=True))
            for text, record in records.items():
                self._records[number, text] = record
                self._records.move_to_end((number, text))
            for text, suffix in here:
                if (record := records[text]) is not None:
                    row = take_rows(record, torch.tensor([store.row_of(suffix)]))
                    found[text, suffix] = without_tokens(row) if self.pooled_only else row
        _shrink(self._records, NUM_RECORDS)
        return found


def _shrink(memory: OrderedDict, size: int) -> None:
    while len(memory) > size:
        memory.popitem(last=False)
