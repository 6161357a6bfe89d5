"""The order of prompts: an endless sequence that is a pure function of (seed, position).

No state grows with training, so a run resumes from its step alone, and any number of processes see the same
order. `shuffle` needs no memory at all, the others a few bytes per prompt.
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

from amortized.config import PathText, check
from amortized.random import derive_seed, uniform
from amortized.types import Corpus

ROUNDS = 10  # of the Feistel network; more than needed to look random, and still microseconds


@dataclass(frozen=True, kw_only=True)
class PromptOrderConfig:
    """The order of training prompts.

    shuffle     epochs over all prompts, each in a new order
    weighted    epochs in which prompts occur in proportion to the weights `by`
    curriculum  passes over the first prompts of the ranking `by`, more at each pass, then epochs over all
    """

    kind: Literal["shuffle", "weighted", "curriculum"] = "shuffle"
    # null: the number of times the training list names a prompt (weighted), its number of words (curriculum).
    # Or the results.json of an evaluation, loaded once at the start, and its column: weights, or scores, of
    # which the highest come first, and prompts without a score last.
    by: PathText | None = None
    column: str = "recall_at_1"
    start: float = 0.1  # curriculum: the share of prompts in the first pass
    passes: int = 5  # curriculum: passes until all prompts take part

    def __post_init__(self) -> None:
        check(self, "start", above=0, at_most=1)
        check(self, "passes", at_least=1, limit=10**6)
        if self.by is not None and (self.kind == "shuffle" or not self.by.endswith(".json")):
            raise ValueError(
                f"by must be null or, for weighted and curriculum, a results.json, got '{self.by}'"
            )


class PromptOrder(Protocol):
    """An endless sequence of the prompts 0 to N - 1."""

    def at(self, position: int) -> int:
        """The prompt at `position`, counted from 0."""
        ...


def build_prompt_order(config: PromptOrderConfig, corpus: Corpus, seed: int) -> PromptOrder:
    """Build the order of a corpus's training prompts. Raises ValueError if weights or scores are missing."""
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
    """Every epoch is a new permutation: each prompt occurs once before any occurs twice."""

    num_prompts: int
    seed: int

    def at(self, position: int) -> int:
        epoch, index = divmod(position, self.num_prompts)
        return shuffled(index, self.num_prompts, derive_seed(self.seed, "epoch", epoch))


class Weighted:
    """In an epoch of N positions a prompt of weight w occurs N w / sum(w) times, rounded up or down.

    Systematic sampling: lay the weights end to end, cut at N evenly spaced points, shuffle.
    """

    def __init__(self, weights: np.ndarray, seed: int) -> None:
        """`weights` [N]: finite, not negative, not all zero."""
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError("prompt_order: weights must be finite, none negative, and not all zero")
        self.ends = np.cumsum(weights, dtype=np.float64)
        self.ends *= len(weights) / self.ends[-1]
        self.seed = seed

    def at(self, position: int) -> int:
        num = len(self.ends)
        epoch, index = divmod(position, num)
        offset = float(uniform((1,), self.seed, "cut", epoch))
        cut = shuffled(index, num, derive_seed(self.seed, "epoch", epoch)) + offset
        return min(int(np.searchsorted(self.ends, cut, side="right")), num - 1)


class Curriculum:
    """Passes over the first prompts of a ranking, each over more of them; then epochs over all.

    Pass k of K covers the first start^(1 - k / (K - 1)) of the ranking, each prompt once, shuffled.
    """

    def __init__(self, ranking: np.ndarray, seed: int, start: float, passes: int) -> None:
        """`ranking` [N]: prompt indices, the first ones to train on first."""
        self.ranking, self.seed = ranking, seed
        shares = [start ** (1 - k / (passes - 1)) for k in range(passes)] if passes > 1 else [start]
        self.sizes = [max(1, math.ceil(share * len(ranking))) for share in shares]
        self.growing = sum(self.sizes)

    def at(self, position: int) -> int:
        if position >= self.growing:
            epoch, index = divmod(position - self.growing, len(self.ranking))
            return self._in_pass(len(self.sizes) + epoch, index, len(self.ranking))
        number, index = 0, position
        while index >= self.sizes[number]:
            index -= self.sizes[number]
            number += 1
        return self._in_pass(number, index, self.sizes[number])

    def _in_pass(self, number: int, index: int, size: int) -> int:
        return int(self.ranking[shuffled(index, size, derive_seed(self.seed, "epoch", number))])


def shuffled(index: int, size: int, key: int) -> int:
    """The image of `index` under a keyed permutation of range(size), without a table.

    A generalized Feistel network on pairs (Black and Rogaway, Ciphers with Arbitrary Finite Domains,
    2002) permutes the smallest near-square grid of at least `size` cells; cycle walking skips the cells
    beyond `size`. Constant memory, about ten microseconds at any size.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is not in range({size})")
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    keyed = _keyed_hash(key)
    while True:
        left, right = index % width, index // width
        for number in range(0, ROUNDS, 2):
            left = (left + _mix(keyed, number, right)) % width
            right = (right + _mix(keyed, number + 1, left)) % height
        index = left + width * right
        if index < size:
            return index


@lru_cache(maxsize=8)
def _keyed_hash(key: int) -> hashlib.blake2b:
    return hashlib.blake2b(key.to_bytes(8, "little"), digest_size=8)


def _mix(keyed: hashlib.blake2b, number: int, value: int) -> int:
    state = keyed.copy()
    state.update(bytes([number]) + value.to_bytes(8, "little"))
    return int.from_bytes(state.digest(), "little")


def _repeats(corpus: Corpus) -> np.ndarray:
    if corpus.repeats is None:
        return np.ones(len(corpus.trained))
    # `held_out` can move prompts of other lists into training: count them once.
    return np.maximum(np.asarray(corpus.repeats)[np.asarray(corpus.trained)], 1)


def _lengths(corpus: Corpus) -> np.ndarray:
    words = (len(corpus[int(index)].text.split()) for index in corpus.trained)
    return np.fromiter(words, np.int32, len(corpus.trained))


def _column(file: str, column: str, corpus: Corpus, missing: float | None = None) -> np.ndarray:
    """A number for each training prompt, from an evaluation's results.json.

    `missing` replaces absent numbers. Raises ValueError if one is absent and `missing` is None, or all are.
    """
    path = Path(file)
    try:
        rows: Sequence[dict] = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        values = {row["id"]: row[column] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"prompt_order.by: {path} is not a results.json with a column {column} ({error!r}); "
            "write one with evaluate.py RUN --split train"
        ) from error
    ids = [corpus[int(index)].id for index in corpus.trained]
    absent = [name for name in ids if not isinstance(values.get(name), int | float)]
    if absent and (missing is None or len(absent) == len(ids)):
        raise ValueError(
            f"prompt_order.by: {path} has no {column} for {len(absent)} of {len(ids)} training prompts, "
            f"the first is {absent[0]}; evaluate them: evaluate.py RUN --split train"
        )
    values |= dict.fromkeys(absent, missing)
    return np.array([values[name] for name in ids], np.float64)
