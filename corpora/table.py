"""A corpus in columns: about 80 bytes per prompt and no Python objects, so ten million prompts fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from amortized.types import Corpus, GroundTruth, Prompt
from corpora.limits import MAX_PROMPTS, MAX_TEXT_BYTES
from corpora.prompts import key_limit, prompt_id, prompt_key, split_of, validate_prompt

SPLITS = ("train", "val", "test")  # bit i of a prompt's `splits` is set if list i contains it
ID = re.compile(r"[_-]*[A-Za-z0-9][A-Za-z0-9_-]*")  # safe in any file name
MAX_ID_LENGTH = 64


class Entry(NamedTuple):
    """One entry of a list of prompts, before validation."""

    text: str
    split: str  # one of SPLITS
    location: str  # file and line, for error messages
    id: str | None = None  # the list's own id for it


@dataclass(frozen=True, eq=False)
class PromptTable:
    """Distinct prompts in order of first appearance, and the lists that contain each."""

    name: str
    texts: pa.LargeStringArray  # [N]
    splits: np.ndarray  # [N] uint8, one bit for each of SPLITS
    repeats: np.ndarray  # [N] int32: number of times that the training list contains it
    keys: np.ndarray  # [N] uint64, `prompt_key`
    ids: pa.LargeStringArray | None = None  # [N], if the list has ids
    trained: Sequence[int] = ()  # indices of the prompts to train on, ascending
    truth_from: Corpus | None = None  # supplies ground truth and distractors, if it knows a prompt

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
        """Indices [M] of the prompts that a list of SPLITS contains."""
        return np.flatnonzero(self.splits & (1 << SPLITS.index(split)))

    def hold_out(self, fraction: float) -> PromptTable:
        """The same prompts, with a fraction held out from training by the hash of their words.

        Overrides the split of the lists. Prompts that differ only in case or a final period fall on the
        same side. Raises ValueError for a fraction outside [0, 1).
        """
        return replace(self, trained=_indices(self.keys >= np.uint64(key_limit(fraction))))

    def truth(self, prompt: Prompt) -> GroundTruth | None:
        """Ground truth of the prompt from the corpus `truth_from`, or None."""
        return None if self.truth_from is None else self.truth_from.truth(prompt)

    def distractors(self) -> Sequence[str]:
        """Extra gallery texts of the corpus `truth_from`."""
        return [] if self.truth_from is None else self.truth_from.distractors()


def training_indices(splits: np.ndarray) -> Sequence[int]:
    """Indices of the prompts that the training list contains, from the bits `splits` [N]."""
    return _indices(splits & 1 > 0)


def _indices(mask: np.ndarray) -> Sequence[int]:
    """Indices of a mask [N] of bools; a range, which takes no memory, if all are set."""
    if mask.all():
        return range(len(mask))
    return np.flatnonzero(mask).astype(np.int32)  # type: ignore[return-value]


def tabulate(entries: Iterable[Entry], name: str, truth_from: Corpus | None = None) -> PromptTable:
    """Build the table of the distinct prompts among the entries, split as they are listed.

    Raises:
        ValueError: the list is empty, an entry cannot be a prompt, an id names two prompts, or only some
            prompts have an id.
    """
    rows: dict[str, int] = {}  # text to row
    row_of_id: dict[str, int] = {}  # by the id in lower case
    ids: dict[int, str] = {}
    splits, repeats, num_bytes = bytearray(), [], 0
    for text, split, location, entry_id in entries:
        text = validate_prompt(text, location)
        row = rows.setdefault(text, len(rows))
        if row == len(splits):
            if row == MAX_PROMPTS:
                raise ValueError(f"{location}: a corpus has at most {MAX_PROMPTS:,} prompts; split the list")
            num_bytes += len(text) if text.isascii() else len(text.encode())
            if num_bytes > MAX_TEXT_BYTES:
                raise ValueError(f"{location}: a corpus has at most {MAX_TEXT_BYTES:,} bytes; split the list")
            splits.append(0)
            repeats.append(0)
        splits[row] |= 1 << SPLITS.index(split)
        repeats[row] += split == SPLITS[0]
        if entry_id is not None:
            _check_id(entry_id, location)
            # Without case: some file systems do not distinguish `Cube` from `cube`.
            if (named := row_of_id.setdefault(entry_id.lower(), row)) != row:
                as_other = "" if ids[named] == entry_id else f", as {ids[named]!r}"
                raise ValueError(f"{location}: the id {entry_id!r} already names another prompt{as_other}")
            ids.setdefault(row, entry_id)  # a repeated prompt keeps its first id
        elif row_of_id:
            raise ValueError(
                f"{location}: has no id, but earlier prompts have; give every prompt one, or none"
            )
    if not rows:
        raise ValueError(f"{name}: contains no prompts; write one per line")
    if ids and len(ids) < len(rows):
        raise ValueError(f"{name}: some prompts have an id, others none; give every prompt one, or none")
    split_bits = np.frombuffer(bytes(splits), np.uint8)
    return PromptTable(
        name=name,
        texts=pa.array(rows, pa.large_string()),
        splits=split_bits,
        repeats=np.array(repeats, np.int32),
        keys=np.fromiter((prompt_key(text) for text in rows), np.uint64, len(rows)),
        ids=pa.array([ids[row] for row in range(len(rows))], pa.large_string()) if ids else None,
        trained=training_indices(split_bits),
        truth_from=truth_from,
    )


def _check_id(entry_id: str, location: str) -> None:
    if len(entry_id) > MAX_ID_LENGTH or not ID.fullmatch(entry_id):
        raise ValueError(
            f"{location}: the id {entry_id[:80]!r} becomes a file name: "
            f"use at most {MAX_ID_LENGTH} letters, digits, '-' and '_'"
        )


def prompt_list(texts: Sequence[str], name: str, truth_from: Corpus | None = None) -> PromptTable:
    """Build a corpus of the given texts without repeats, all for training; raises like `tabulate`.

    Ground truth and distractors come from the corpus `truth_from`, if given.
    """
    entries = (Entry(text, "train", f"{name}, prompt {number}") for number, text in enumerate(texts, 1))
    return tabulate(entries, name, truth_from)
