"""Prompts in columns: a corpus of ten million takes some 80 bytes for each, and no Python object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from amortized.types import Corpus, GroundTruth, Prompt
from corpora.prompts import checked, key_limit, prompt_id, prompt_key, split_of

SPLITS = ("train", "val", "test")  # bit i of a prompt's `splits` says that list i names it


class Entry(NamedTuple):
    """A line of a list of prompts."""

    text: str
    split: str  # one of SPLITS
    where: str  # the file and line, for errors
    id: str | None = None  # the list's own name for it


@dataclass(frozen=True, eq=False)
class PromptTable:
    """Different prompts, in the order of their first appearance, and the lists that name each."""

    name: str
    texts: pa.LargeStringArray
    splits: np.ndarray  # [N] uint8, a bit for each of SPLITS
    repeats: np.ndarray  # [N] int32: how often the training list names it
    keys: np.ndarray  # [N] uint64, `prompt_key`
    ids: pa.LargeStringArray | None = None  # where the list has its own
    trained: Sequence[int] = ()  # indices of the prompts to train on, ascending
    truth_from: Corpus | None = None  # knows the truth of some sentences

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has prompts 0 to {len(self) - 1}, not {index}")
        text = self.texts[index].as_py()
        return Prompt(
            id=prompt_id(text) if self.ids is None else self.ids[index].as_py(),
            text=text,
            split=split_of(index, self.trained),
        )

    def listed(self, split: str) -> np.ndarray:
        """Indices of the prompts that a list of SPLITS names."""
        return np.flatnonzero(self.splits & (1 << SPLITS.index(split)))

    def hold_out(self, share: float) -> PromptTable:
        """The same prompts, of which a share, chosen by the hash of their words, is never trained on.

        Whatever the lists say; prompts that differ in case or full stop fall to the same side.
        """
        return replace(self, trained=_indices(self.keys >= np.uint64(key_limit(share))))

    def truth(self, prompt: Prompt) -> GroundTruth | None:
        """What the background corpus knows of the sentence, if anything."""
        return None if self.truth_from is None else self.truth_from.truth(prompt)

    def distractors(self) -> Sequence[str]:
        return [] if self.truth_from is None else self.truth_from.distractors()


def listed_for_training(splits: np.ndarray) -> Sequence[int]:
    """Indices of the prompts that the training list names."""
    return _indices(splits & 1 > 0)


def _indices(chosen: np.ndarray) -> Sequence[int]:
    if chosen.all():
        return range(len(chosen))
    return np.flatnonzero(chosen).astype(np.int32)  # type: ignore[return-value]


def tabulate(entries: Iterable[Entry], name: str, truth_from: Corpus | None = None) -> PromptTable:
    """A table of the entries' different prompts, split as they are listed.

    Raises ValueError where there are none, one cannot be a prompt, or an id names two prompts.
    """
    rows: dict[str, int] = {}
    own_ids: dict[str, int] = {}
    splits, repeats = bytearray(), []
    for text, split, where, given in entries:
        text = checked(text, where)
        row = rows.setdefault(text, len(rows))
        if row == len(splits):
            splits.append(0)
            repeats.append(0)
        splits[row] |= 1 << SPLITS.index(split)
        repeats[row] += split == SPLITS[0]
        if given is not None:
            _check_id(given, own_ids.setdefault(given, row) == row, where)
        elif own_ids:
            raise ValueError(f"{where}: has no id, but others have; give every prompt one, or none")
    if not rows:
        raise ValueError(f"{name}: holds no prompt; write one a line")
    ids: dict[int, str] = {}
    for given, row in own_ids.items():
        ids.setdefault(row, given)
    if ids and len(ids) < len(rows):
        raise ValueError(f"{name}: some prompts have an id, others none; give every prompt one, or none")
    lists = np.frombuffer(bytes(splits), np.uint8)
    return PromptTable(
        name=name,
        texts=pa.array(rows, pa.large_string()),
        splits=lists,
        repeats=np.array(repeats, np.int32),
        keys=np.fromiter((prompt_key(text) for text in rows), np.uint64, len(rows)),
        ids=pa.array([ids[row] for row in range(len(rows))], pa.large_string()) if ids else None,
        trained=listed_for_training(lists),
        truth_from=truth_from,
    )


def _check_id(given: str, is_first: bool, where: str) -> None:
    if not is_first:
        raise ValueError(f"{where}: the id {given!r} names another prompt already")
    if not (given.isascii() and given.replace("-", "").replace("_", "").isalnum() and len(given) <= 64):
        raise ValueError(
            f"{where}: the id {given[:80]!r} names files: use at most 64 letters, digits, '-' and '_'"
        )


def prompt_list(texts: Sequence[str], name: str, truth_from: Corpus | None = None) -> PromptTable:
    """A corpus of the given sentences, repetitions dropped; raises ValueError as `tabulate` does."""
    entries = (Entry(text, "train", f"{name}, prompt {place}") for place, text in enumerate(texts, 1))
    return tabulate(entries, name, truth_from)
