"""How far a sentence is from the training prompts of a model, before its object disappoints.

The distance of two sentences is one minus the cosine of their text embeddings. Text encoders differ in what
is far, so the scale is the model's own: the distances of its training prompts to their nearest others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from amortized.knowledge import Knowledge, words_of

SAMPLE = 256  # training prompts that are encoded: a second with a small text encoder
TOGETHER = 16  # prompts in a call of the text encoder
FAR = 2.0  # times the usual distance; a choice
ONE_PROMPT = 0.2  # the usual distance, if there is one training prompt
PERCENTILE = 0.95
BY_WORDS, SHOWN = 8, 3  # nearest prompts: tried beside the sample, and named
WORDS = 8  # named in a sentence

Embed = Callable[[Sequence[str]], Tensor]  # N texts -> [N, D]


class Familiarity:
    """What a model may say about a sentence. Encodes its sample of the training prompts at the first one."""

    def __init__(self, knowledge: Knowledge, embed: Embed) -> None:
        self.knowledge, self._embed = knowledge, embed
        self._words = frozenset(knowledge.words)
        self._texts = {_plain(text): text for text in knowledge.prompts}
        number = len(knowledge.prompts)
        step = max(1.0, number / SAMPLE)
        self._sample = [knowledge.prompts[int(i * step)] for i in range(min(number, SAMPLE))]

    @cached_property
    def _sampled(self) -> tuple[Tensor, float]:
        """Unit embeddings [S, D] of the sample, and the usual distance of a prompt to its nearest other."""
        vectors = self._unit(self._sample)
        if len(vectors) < 2:
            return vectors, ONE_PROMPT
        distances = (1 - vectors @ vectors.T).fill_diagonal_(torch.inf).amin(dim=1)
        return vectors, max(0.01, float(distances.quantile(PERCENTILE)))

    def _unit(self, texts: Sequence[str]) -> Tensor:
        parts = [texts[i : i + TOGETHER] for i in range(0, len(texts), TOGETHER)]
        vectors = torch.cat([self._embed(part).detach().float().cpu() for part in parts])
        return torch.nn.functional.normalize(vectors, dim=-1)

    def __call__(self, prompt: str) -> dict[str, Any]:
        """How a sentence relates to the training prompts; JSON."""
        nearest = self._nearest(prompt)
        usual = self._sampled[1] if self._sample else ONE_PROMPT
        distance = nearest[0][1] if nearest else None
        trained = _plain(prompt) in self._texts
        return {
            "trained": trained,
            "far": not trained and distance is not None and distance > FAR * usual,
            "distance": distance,
            "usual_distance": usual,
            "unseen_words": [w for w in dict.fromkeys(words_of(prompt)) if w not in self._words],
            "nearest": [{"prompt": text, "distance": away} for text, away in nearest[:SHOWN]],
        }

    def _nearest(self, prompt: str) -> list[tuple[str, float]]:
        """The nearest of the sample and of the prompts that share most words, with their distances."""
        if not self._sample:
            return []
        words = set(words_of(prompt))
        shared = {text: len(words & set(words_of(text))) for text in self.knowledge.prompts}
        by_words = sorted((text for text in shared if shared[text]), key=lambda text: -shared[text])
        found = [self._texts[_plain(prompt)]] if _plain(prompt) in self._texts else []
        others = list(dict.fromkeys([*found, *by_words[:BY_WORDS]]))
        vectors = self._unit([prompt, *others])
        texts = [*self._sample, *others]
        distances = 1 - torch.cat([self._sampled[0], vectors[1:]]) @ vectors[0]
        pairs = dict(zip(texts, distances.clamp(min=0).tolist(), strict=True))
        return [(text, round(away, 4)) for text, away in sorted(pairs.items(), key=lambda pair: pair[1])]


def sentences(found: dict[str, Any], notes: Sequence[str] = ()) -> list[str]:
    """What to say about a sentence before it is made, if anything."""
    said = []
    if unseen := found["unseen_words"]:
        shown = ", ".join(f"\u201c{word}\u201d" for word in unseen[:WORDS])
        more = f" and {len(unseen) - WORDS} more" if len(unseen) > WORDS else ""
        said.append(f"No training prompt has the word{'s' * (len(unseen) > 1)} {shown}{more}.")
    if found["far"]:
        said.append("This sentence is far from the training prompts: expect an object that does not fit it.")
    return [*said, *notes]


def _plain(text: str) -> str:
    return " ".join(words_of(text))
