"""Corpora of prompts, by name or file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from amortized.types import Corpus
from corpora.prompts import PromptList, prompt_list, read_prompts
from corpora.shapes.corpus import shapes16, shapes100k, shapes_comp, shapes_fronts, shapes_open

CORPORA: dict[str, Callable[[], Corpus]] = {
    "shapes16": shapes16,
    "shapes-fronts": shapes_fronts,
    "shapes-open": shapes_open,
    "shapes-comp": shapes_comp,
    "shapes100k": shapes100k,
}


def open_corpus(name: str) -> Corpus:
    """The corpus of that name, or the prompts of a .txt file; raises ValueError for anything else."""
    if name in CORPORA:
        return CORPORA[name]()
    if name.endswith(".txt"):
        return prompt_list(read_prompts(Path(name)), name)
    raise ValueError(
        f"corpus must be one of {', '.join(CORPORA)}, or a .txt file with one prompt a line, got '{name}'"
    )


__all__ = ["CORPORA", "PromptList", "open_corpus", "prompt_list", "read_prompts"]
