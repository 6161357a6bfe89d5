"""A text encoder without weights: each row is a pseudorandom function of the text."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import torch

from amortized.types import Prompt, TextCondition
from corpora import PromptTable, prompt_list

LENGTH, WIDTH = 7, 8


class LetterEncoder:
    """As `CLIPTextEncoder`; `seed` makes another encoder, `delay` seconds a slow one."""

    max_length, width, name, batch_size = LENGTH, WIDTH, "letters", 1

    def __init__(self, seed: int = 0, delay: float = 0.0) -> None:
        self.seed, self.delay, self.calls = seed, delay, []

    def encode(self, texts: Sequence[str]) -> TextCondition:
        self.calls.append(list(texts))
        time.sleep(self.delay * len(texts))
        rows, lengths = [], []
        for text in texts:
            key = int.from_bytes(hashlib.sha256(f"{self.seed} {text}".encode()).digest()[:7], "little")
            rows.append(torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(key)))
            lengths.append(min(len(text.split()) + 2, LENGTH))
        tokens, ends = torch.stack(rows), torch.tensor(lengths)
        mask = torch.arange(LENGTH)[None] < ends[:, None]
        return TextCondition(pooled=tokens[torch.arange(len(texts)), ends - 1], tokens=tokens, mask=mask)

    def fingerprint(self) -> str:
        return f"float32 {self.seed:016x}"

    def is_overlong(self, text: str) -> bool:
        return len(text.split()) > LENGTH - 2

    def num_pieces(self, word: str) -> int:
        return 1


def numbered(count: int) -> PromptTable:
    return prompt_list([f"prompt number {index}" for index in range(count)], "numbered")


class ListCorpus:
    """A corpus of the given prompts, duplicates included."""

    name, trained, repeats = "listed", (), None

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(id=str(index), text=self.texts[index])
