"""Near-duplicates: held-out prompts so close to training that they do not test generalization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, tee
from typing import TYPE_CHECKING

from corpora.prompts import normalized

if TYPE_CHECKING:
    from datasketch import MinHash

NUM_HASHES = 128
THRESHOLD = 0.8  # Jaccard similarity of two prompts' sets of words and bigrams; a choice


def near_duplicates(
    prompts: Sequence[str], trained: Iterable[str], *, threshold: float = THRESHOLD
) -> dict[str, tuple[str, float]]:
    """Map each prompt that nearly duplicates a training prompt to the most similar one and its similarity.

    A training prompt equal to the prompt takes precedence. Candidates come from MinHash (Broder 1997)
    with locality-sensitive hashing over `prompts`, so the training prompts, however many, are only
    streamed. Reported similarities are exact; a pair close to the threshold may be missed.

    Args:
        prompts: M texts to look up, held in memory.
        trained: training texts, read once.
        threshold: least similarity in (0, 1] that counts.
    """
    from datasketch import MinHashLSH  # loads SciPy, 0.3 s

    sets = {text: _shingles(text) for text in prompts}
    # LSH retrieves only half of the pairs at its own threshold; at 0.75 of ours it retrieves nearly all.
    index = MinHashLSH(threshold=0.75 * threshold, num_perm=NUM_HASHES)
    for text, hashes in zip(sets, _min_hashes(sets.values()), strict=True):
        index.insert(text, hashes)
    texts, texts_to_hash = tee(trained)
    best: dict[str, tuple[str, float]] = {}
    for candidate, hashes in zip(texts, _min_hashes(_shingles(t) for t in texts_to_hash), strict=True):
        for text in map(str, index.query(hashes)):
            one, other = sets[text], _shingles(candidate)
            similarity = len(one & other) / len(one | other)
            if similarity >= threshold and (candidate == text or similarity > best.get(text, ("", 0.0))[1]):
                best[text] = (candidate, similarity)
    return best


def nearest_trained(prompts: Iterable[str], trained: Iterable[str]) -> dict[str, tuple[str, float]]:
    """Map each prompt to the most similar training prompt and their similarity in [0, 1]; 0 is ("", 0.0).

    The same similarity as in `near_duplicates`, exact and without a threshold: how far a prompt lies from the
    trained corpus. Only training prompts that share a word with a prompt are compared, each in the time of
    the words that they share; they are streamed.
    """
    sets = {text: _shingles(text) for text in prompts}
    texts_with: dict[str, list[str]] = {}
    for text, shingles in sets.items():
        for shingle in shingles:
            texts_with.setdefault(shingle, []).append(text)
    best: dict[str, tuple[str, float]] = {text: ("", 0.0) for text in sets}
    for candidate in trained:
        other = _shingles(candidate)
        shared = Counter(text for shingle in other for text in texts_with.get(shingle, ()))
        for text, number in shared.items():
            similarity = number / (len(sets[text]) + len(other) - number)
            if similarity > best[text][1] or (candidate == text and similarity == best[text][1]):
                best[text] = (candidate, similarity)
    return best


def _shingles(text: str) -> frozenset[str]:
    """The words and bigrams of a text: with words alone, a reordering would count as a duplicate."""
    words = normalized(text).split() or [text]
    return frozenset((*words, *(f"{one} {other}" for one, other in pairwise(words))))


def _min_hashes(sets: Iterable[frozenset[str]]) -> Iterator[MinHash]:
    from datasketch import MinHash

    encoded = ([shingle.encode() for shingle in shingles] for shingles in sets)
    return MinHash.generator(encoded, num_perm=NUM_HASHES)
