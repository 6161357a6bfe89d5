"""Held-out prompts that are nearly those of training: a score on them says little of new ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from datasketch import MinHash, MinHashLSH

from corpora.prompts import normalized

NUM_HASHES = 128
NEAR = 0.8  # Jaccard similarity of two prompts' sets of words


def near_duplicates(
    asked: Sequence[str], trained: Iterable[str], *, near: float = NEAR
) -> dict[str, tuple[str, float]]:
    """Each asked prompt that some trained one nearly equals => the most alike one, and their similarity.

    Candidates come from MinHash (Broder 1997) with locality-sensitive hashing, over the asked prompts,
    so that the trained ones, however many, are only passed by; what is reported is exact, and a pair
    next to `near` may be missed.
    """
    sets = {text: _words(text) for text in asked}
    # At its threshold the index finds only half of the pairs: well below `near` it finds nearly all.
    index = MinHashLSH(threshold=0.75 * near, num_perm=NUM_HASHES)
    for text, hashes in zip(sets, MinHash.bulk(_encoded(sets.values()), num_perm=NUM_HASHES), strict=True):
        index.insert(text, hashes)
    found: dict[str, tuple[str, float]] = {}
    for seen in trained:
        words = _words(seen)
        hashes = MinHash(num_perm=NUM_HASHES)
        hashes.update_batch([word.encode() for word in words])
        for text in map(str, index.query(hashes)):
            alike = len(words & sets[text]) / len(words | sets[text])
            if alike >= near and alike > found.get(text, ("", 0.0))[1]:
                found[text] = (seen, alike)
    return found


def _words(text: str) -> frozenset[str]:
    return frozenset(normalized(text).split()) or frozenset((text,))


def _encoded(sets: Iterable[frozenset[str]]) -> list[list[bytes]]:
    return [[word.encode() for word in words] for words in sets]
