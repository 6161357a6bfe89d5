"""Held-out prompts that are nearly those of training: a score on them says little of new ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, tee

from datasketch import MinHash, MinHashLSH

from corpora.prompts import normalized

NUM_HASHES = 128
NEAR = 0.8  # Jaccard similarity of two prompts' words and pairs of neighboring words


def near_duplicates(
    asked: Sequence[str], trained: Iterable[str], *, near: float = NEAR
) -> dict[str, tuple[str, float]]:
    """Each asked prompt that some trained one nearly equals => the most alike one (itself where it is there),
    and their similarity.

    Candidates come from MinHash (Broder 1997) with locality-sensitive hashing, over the asked prompts,
    so that the trained ones, however many, are only passed by; what is reported is exact, and a pair
    next to `near` may be missed.
    """
    sets = {text: _parts(text) for text in asked}
    # At its threshold the index finds only half of the pairs: well below `near` it finds nearly all.
    index = MinHashLSH(threshold=0.75 * near, num_perm=NUM_HASHES)
    for text, hashes in zip(sets, _hashed(sets.values()), strict=True):
        index.insert(text, hashes)
    passing, hashed = tee(trained)
    found: dict[str, tuple[str, float]] = {}
    for seen, hashes in zip(passing, _hashed(_parts(text) for text in hashed), strict=True):
        for text in map(str, index.query(hashes)):
            own, other = sets[text], _parts(seen)
            alike = len(own & other) / len(own | other)
            if alike >= near and (seen == text or alike > found.get(text, ("", 0.0))[1]):
                found[text] = (seen, alike)
    return found


def _parts(text: str) -> frozenset[str]:
    """Words and pairs of neighbors: the same words in another order are another prompt."""
    words = normalized(text).split() or [text]
    return frozenset((*words, *(f"{one} {other}" for one, other in pairwise(words))))


def _hashed(sets: Iterable[frozenset[str]]) -> Iterator[MinHash]:
    return MinHash.generator(([part.encode() for part in parts] for parts in sets), num_perm=NUM_HASHES)
