"""Which prompt comes when: an endless order that is a pure function of the seed and the position.

Nothing is stored that grows as training goes on, so a run resumes by its step alone, and any number of
processes see the same order. `shuffle` needs no memory at all, the others some bytes for each prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from amortized.random import derive_seed, uniform
from amortized.types import Corpus

ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """In which order prompts are trained on.

    shuffle     all of them, each epoch in another order
    weighted    the same, but a prompt comes as often as `by` says, on average
    curriculum  first a share of them, those that `by` puts first, then more and more, then all
    """

    kind: Literal["shuffle", "weighted", "curriculum"] = "shuffle"
    # null: how often the training list names a prompt (weighted), its number of words (curriculum). Or the
    # results.json of an evaluation, read once at the start, and its column: weights, or scores of which the
    # highest come first, and prompts without one last.
    by: str | None = None
    column: str = "recall_at_1"
    start: float = 0.1  # curriculum: the share of its first pass
    passes: int = 5  # curriculum: passes until all prompts take part, each over more of them

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"order.start must lie in (0, 1], got {self.start}")
        if self.passes < 1:
            raise ValueError(f"order.passes must be at least 1, got {self.passes}")
        if self.by is not None and (self.kind == "shuffle" or not self.by.endswith(".json")):
            raise ValueError(
                f"order.by must be null or, for weighted and curriculum, a results.json, got '{self.by}'"
            )


class Order(Protocol):
    """An endless order of the prompts 0 to N - 1."""

    def at(self, position: int) -> int:
        """The prompt at a position, counted from 0."""
        ...


def order_of(config: OrderConfig, corpus: Corpus, seed: int) -> Order:
    """The order of a corpus' training prompts. Raises ValueError where weights are missing."""
    num = len(corpus.trained)
    if config.kind == "shuffle":
        return Shuffle(num, seed)
    if config.kind == "weighted":
        weights = _repeats(corpus) if config.by is None else _column(config.by, config.column, corpus)
        return Weighted(weights, seed)
    if config.by is None:
        difficulty = _lengths(corpus)
    else:
        difficulty = -_column(config.by, config.column, corpus, missing=-math.inf)
    ranking = np.argsort(difficulty, kind="stable").astype(np.int32)
    return Curriculum(ranking, seed, config.start, config.passes)


@dataclass(frozen=True)
class Shuffle:
    """Every epoch is another permutation, so each prompt is seen once before any is seen twice."""

    num_prompts: int
    seed: int

    def at(self, position: int) -> int:
        epoch, place = divmod(position, self.num_prompts)
        return shuffled(place, self.num_prompts, derive_seed(self.seed, "epoch", epoch))


class Weighted:
    """In an epoch of N positions a prompt of weight w comes N w / sum(w) times, rounded up or down.

    Systematic sampling: the weights laid end to end are cut at N evenly spaced places, shuffled.
    """

    def __init__(self, weights: np.ndarray, seed: int) -> None:
        """`weights` [N], none negative, not all zero."""
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError("order: weights must be finite, none negative and not all zero")
        self.ends = np.cumsum(weights, dtype=np.float64)
        self.ends *= len(weights) / self.ends[-1]
        self.seed = seed

    def at(self, position: int) -> int:
        num = len(self.ends)
        epoch, place = divmod(position, num)
        offset = float(uniform((1,), self.seed, "cut", epoch))
        cut = shuffled(place, num, derive_seed(self.seed, "epoch", epoch)) + offset
        return min(int(np.searchsorted(self.ends, cut, side="right")), num - 1)


class Curriculum:
    """Passes over the first prompts of a ranking, each pass over more of them; then epochs over all.

    Pass k of K covers the first start^(1 - k / (K - 1)) of the ranking, each prompt once, shuffled.
    """

    def __init__(self, ranking: np.ndarray, seed: int, start: float, passes: int) -> None:
        """`ranking` [N]: the prompts, those to begin with first."""
        self.ranking, self.seed = ranking, seed
        shares = [start ** (1 - k / (passes - 1)) for k in range(passes)] if passes > 1 else [start]
        self.sizes = [max(1, math.ceil(share * len(ranking))) for share in shares]
        self.growing = sum(self.sizes)

    def at(self, position: int) -> int:
        if position >= self.growing:
            epoch, place = divmod(position - self.growing, len(self.ranking))
            return self._of_pass(len(self.sizes) + epoch, place, len(self.ranking))
        number, place = 0, position
        while place >= self.sizes[number]:
            place -= self.sizes[number]
            number += 1
        return self._of_pass(number, place, self.sizes[number])

    def _of_pass(self, number: int, place: int, size: int) -> int:
        return int(self.ranking[shuffled(place, size, derive_seed(self.seed, "epoch", number))])


def shuffled(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of range(size) takes `index`, without a table of it.

    A generalized Feistel network on pairs (Black and Rogaway, Ciphers with Arbitrary Finite Domains,
    2002): the smallest rectangle that holds `size` numbers is permuted, and walked on from the few
    places outside. Constant memory and some ten microseconds at any size.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is not in range({size})")
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    secret = _secret(key)
    while True:
        left, right = index % width, index // width
        for number in range(0, ROUNDS, 2):
            left = (left + _mixed(secret, number, right)) % width
            right = (right + _mixed(secret, number + 1, left)) % height
        index = left + width * right
        if index < size:
            return index


@lru_cache(maxsize=8)
def _secret(key: int) -> hashlib.blake2b:
    return hashlib.blake2b(key.to_bytes(8, "little"), digest_size=8)


def _mixed(secret: hashlib.blake2b, number: int, value: int) -> int:
    state = secret.copy()
    state.update(bytes([number]) + value.to_bytes(8, "little"))
    return int.from_bytes(state.digest(), "little")


def _repeats(corpus: Corpus) -> np.ndarray:
    if corpus.repeats is None:
        return np.ones(len(corpus.trained))
    # What only other lists name is trained on where `held_out` says so: once.
    return np.maximum(np.asarray(corpus.repeats)[np.asarray(corpus.trained)], 1)


def _lengths(corpus: Corpus) -> np.ndarray:
    words = (len(corpus[int(index)].text.split()) for index in corpus.trained)
    return np.fromiter(words, np.int32, len(corpus.trained))


def _column(file: str, column: str, corpus: Corpus, missing: float | None = None) -> np.ndarray:
    """A number for each training prompt, from an evaluation's results.

    `missing` stands for those without one. Raises ValueError where it is None, or all are without.
    """
    path = Path(file)
    try:
        rows: Sequence[dict] = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        found = {row["id"]: row[column] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"order.by: {path} is no results.json with a column {column} ({error!r}); "
            "make one with evaluate.py RUN --split train"
        ) from error
    ids = [corpus[int(index)].id for index in corpus.trained]
    lacking = [name for name in ids if not isinstance(found.get(name), int | float)]
    if lacking and (missing is None or len(lacking) == len(ids)):
        raise ValueError(
            f"order.by: {path} has no {column} for {len(lacking)} of {len(ids)} training prompts, "
            f"the first is {lacking[0]}; evaluate them: evaluate.py RUN --split train"
        )
    found |= dict.fromkeys(lacking, missing)
    return np.array([found[name] for name in ids], np.float64)
