"""A text encoder behind two caches: shards on disk and an LRU cache in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import RLock

import torch

from amortized.conditioning.encoder_identity import is_same_encoder, probe_vector
from amortized.conditioning.fitting import fit
from amortized.conditioning.rows import concatenate_rows, move_rows, take_rows, without_tokens
from amortized.conditioning.shards import ShardStore
from amortized.conditioning.text_encoder import TextEncoder
from amortized.types import TextCondition

TextKey = tuple[str, str]  # (prompt, suffix); `fit` joins them to the encoded text
# Shard records cached in memory. A step needs each prompt twice, for the generator and for the prior.
NUM_CACHED_RECORDS = 64


class CachedTextEncoder:
    """One encoder's embeddings, on the CPU. Thread-safe.

    Texts in shards are read from disk on every visit. Other texts are encoded and stay in an LRU cache.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        stores: Sequence[ShardStore] = (),
        *,
        cache_size: int = 8192,
        lock: RLock | None = None,
    ) -> None:
        """Create an empty cache in front of `encoder`.

        stores      stores of other encoders are ignored; if one has no tokens, no row gets any
        cache_size  number of encoded texts in memory
        lock        the encoder's lock, if another instance shares the encoder
        """
        self.encoder, self.cache_size = encoder, cache_size
        identity = (encoder.fingerprint(), probe_vector(encoder)) if stores else ("", ())
        self.stores = [store for store in stores if is_same_encoder(store.manifest, *identity)]
        self.pooled_only = any(store.manifest.pooled_only for store in self.stores)
        self.lock = lock or RLock()
        self.num_encoded = 0  # texts encoded so far because no store had them
        self._cache: OrderedDict[TextKey, TextCondition] = OrderedDict()
        self._records: OrderedDict[tuple[int, str], TextCondition | None] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of texts in the memory cache."""
        return len(self._cache)

    def encode(self, keys: Sequence[TextKey]) -> TextCondition:
        """Return N rows, one for each key in order; repeats are allowed."""
        with self.lock:
            rows = self._lookup(list(dict.fromkeys(keys)))
            _evict(self._cache, self.cache_size)
        return concatenate_rows([rows[key] for key in keys])

    def ensure_cached(self, keys: Sequence[TextKey]) -> None:
        """Encode the keys that are in neither shards nor cache, in one go, so that `encode` finds them."""
        with self.lock:
            # No eviction here: the caller fetches its rows before the cache shrinks to its size.
            self._lookup(list(dict.fromkeys(keys)))

    def fraction_in_shards(self, keys: Sequence[TextKey]) -> float:
        """Return the share of the keys that some store has, in [0, 1]; only the index is read."""
        stored = (
            any(store.has_suffix(suffix) and store.has_prompt(prompt) for store in self.stores)
            for prompt, suffix in keys
        )
        return sum(stored) / len(keys)

    def encode_uncached(self, keys: Sequence[TextKey]) -> TextCondition:
        """Encode N keys in one batch, past shards and cache: N rows."""
        with self.lock:
            return move_rows(self.encoder.encode([fit(self.encoder, *key) for key in keys]), "cpu")

    def _lookup(self, keys: Sequence[TextKey]) -> dict[TextKey, TextCondition]:
        """Return one row for each of the distinct keys; encode the missing ones."""
        rows = self._read_shards(keys)
        not_stored = [key for key in keys if key not in rows]
        self._encode_missing([key for key in not_stored if key not in self._cache])
        for key in not_stored:
            self._cache.move_to_end(key)
            rows[key] = self._cache[key]
        return rows

    def _encode_missing(self, keys: Sequence[TextKey]) -> None:
        """Encode texts into the cache, padding the last batch with empty texts to the encoder's batch size.

        A row's last digits depend on the batch size. A resumed run misses other texts in another order, so
        only full batches reproduce the same rows.
        """
        size = self.encoder.batch_size
        for start in range(0, len(keys), size):
            batch = keys[start : start + size]
            texts = [fit(self.encoder, *key) for key in batch]
            encoded = move_rows(self.encoder.encode([*texts, *[""] * (size - len(texts))]), "cpu")
            for i, key in enumerate(batch):
                row = take_rows(encoded, torch.tensor([i]))
                self._cache[key] = without_tokens(row) if self.pooled_only else row
        self.num_encoded += len(keys)

    def _read_shards(self, keys: Sequence[TextKey]) -> dict[TextKey, TextCondition]:
        """Return the rows of the keys that are in shards; the first store that has one wins."""
        rows: dict[TextKey, TextCondition] = {}
        for number, store in enumerate(self.stores):
            wanted = [key for key in keys if key not in rows and store.has_suffix(key[1])]
            prompts = list(dict.fromkeys(prompt for prompt, _ in wanted))
            unread = [prompt for prompt in prompts if (number, prompt) not in self._records]
            records = {prompt: self._records[number, prompt] for prompt in prompts if prompt not in unread}
            records |= dict(zip(unread, store.read(unread), strict=True))
            for prompt, record in records.items():
                self._records[number, prompt] = record
                self._records.move_to_end((number, prompt))
            for prompt, suffix in wanted:
                if (record := records[prompt]) is not None:
                    row = take_rows(record, torch.tensor([store.row_of(suffix)]))
                    rows[prompt, suffix] = without_tokens(row) if self.pooled_only else row
        _evict(self._records, NUM_CACHED_RECORDS)
        return rows


def _evict(cache: OrderedDict, size: int) -> None:
    """Drop the least recently used entries beyond `size`."""
    while len(cache) > size:
        cache.popitem(last=False)
