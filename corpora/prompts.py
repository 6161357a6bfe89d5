"""Prompts from anywhere: one sentence, or a text file with one a line."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amortized.types import Corpus, GroundTruth, Prompt


def prompt_id(text: str) -> str:
    """A short name that depends on the sentence alone, safe in any file name."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True)
class PromptList:
    """Given sentences as a corpus; what is known of them is what `background` knows."""

    name: str
    prompts: tuple[Prompt, ...]
    background: Corpus | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def truth(self, prompt: Prompt) -> GroundTruth | None:
        """What the background corpus knows of the sentence, if anything."""
        return None if self.background is None else self.background.truth(prompt)

    def distractors(self) -> Sequence[str]:
        return [] if self.background is None else self.background.distractors()


def prompt_list(texts: Sequence[str], name: str, background: Corpus | None = None) -> PromptList:
    """A corpus of the given sentences; raises ValueError on an empty one or an empty sentence."""
    if not texts:
        raise ValueError(f"{name} holds no prompt")
    for place, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"{name}: prompt {place} is empty")
    prompts = tuple(Prompt(id=prompt_id(text), text=text) for text in dict.fromkeys(texts))
    return PromptList(name, prompts, background)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, blank lines skipped; raises ValueError naming file and line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); give a text file with one prompt a line"
        ) from error
    texts = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError(f"{path}, line {number}: not valid UTF-8; save the file as UTF-8") from None
        if "\0" in text:
            raise ValueError(f"{path}, line {number}: holds a NUL byte; remove it")
        if text:
            texts.append(text)
    if not texts:
        raise ValueError(f"{path}: holds no prompt; write one a line")
    return texts
