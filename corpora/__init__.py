"""Corpora of prompts, by name or file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from amortized.types import Corpus
from corpora.at2520 import at2520
from corpora.files import READERS, entries_of
from corpora.nearness import near_duplicates
from corpora.published import PUBLISHED, load_table
from corpora.shapes.corpus import ShapesCorpus, shapes16, shapes100k, shapes_comp, shapes_fronts, shapes_open
from corpora.table import SPLITS, PromptTable, prompt_list, tabulate

# What is made here; the other names of PUBLISHED are imported first.
CORPORA: dict[str, Callable[[], ShapesCorpus | PromptTable]] = {
    "shapes16": shapes16,
    "shapes-fronts": shapes_fronts,
    "shapes-open": shapes_open,
    "shapes-comp": shapes_comp,
    "shapes100k": shapes100k,
    "at2520": at2520,
}
IMPORTED = Path("outputs/corpora")  # where imported ones are kept


def open_corpus(name: str, *, held_out: float | None = None, folder: Path = IMPORTED) -> Corpus:
    """The corpus of that name, or the prompts of a file.

    held_out  None: the corpus' own split, for published ones that of their files; a share: that part of
              all prompts is never trained on, chosen by the hash of their words
    folder    where imported corpora are kept

    Raises ValueError for an unknown name, or a file that is no list of prompts.
    """
    corpus = _open(name, folder)
    return corpus if held_out is None else corpus.hold_out(held_out)


def indices_of(corpus: Corpus, split: str) -> Sequence[int]:
    """Indices of some prompts of a corpus: `all`, `train`, `heldout`, or a list of its file (`val`, `test`).

    Raises ValueError where there are none.
    """
    everything = range(len(corpus))
    if split == "all":
        found: Sequence[int] = everything
    elif split == "train":
        found = corpus.trained
    elif split == "heldout":
        found = np.setdiff1d(everything, corpus.trained, assume_unique=True)  # type: ignore[assignment]
    elif split in SPLITS and isinstance(corpus, PromptTable):
        found = corpus.listed(split)  # type: ignore[assignment]
    else:
        raise ValueError(f"corpus {corpus.name} has no list named {split}: use all, train or heldout")
    if not len(found):
        raise ValueError(f"corpus {corpus.name} has no prompt in '{split}'")
    return found


def _open(name: str, folder: Path) -> ShapesCorpus | PromptTable:
    if name in CORPORA:
        return CORPORA[name]()
    if name in PUBLISHED:
        path = folder / f"{name}.parquet"
        if not path.exists():
            known = PUBLISHED[name]
            raise ValueError(
                f"corpus '{name}' is not here yet: get {known.file} ({known.origin}), "
                f"then: python -m corpora import {name} {known.file}"
            )
        table = load_table(path)
        if table is None:
            raise ValueError(f"{path}: not kept by an import; remove it, and import {name} again")
        return table
    if Path(name).suffix in READERS:
        own = load_table(Path(name)) if name.endswith(".parquet") and Path(name).exists() else None
        return replace(own, name=name) if own is not None else tabulate(entries_of(Path(name)), name)
    raise ValueError(
        f"corpus must be one of {', '.join(sorted({*CORPORA, *PUBLISHED}))}, "
        f"or a {', '.join(READERS)} file, got '{name}'"
    )


__all__ = [
    "CORPORA",
    "IMPORTED",
    "PUBLISHED",
    "PromptTable",
    "entries_of",
    "indices_of",
    "near_duplicates",
    "open_corpus",
    "prompt_list",
    "tabulate",
]
