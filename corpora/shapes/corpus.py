"""The named corpora of the Shapes world."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from amortized.types import GroundTruth, Prompt
from corpora.prompts import key_limit, prompt_id, prompt_key, split_of
from corpora.shapes import grammar
from corpora.shapes.grammar import COLORS, NUM_PAIRS, SHAPES, SIZED_ITEMS, Description, Item
from corpora.shapes.scene import truth_of

NUM_SHAPES, NUM_COLORS = len(SHAPES), len(COLORS)


@dataclass(frozen=True)
class ShapesCorpus:
    """Sentences by index: nothing is stored, so a corpus of any size costs nothing."""

    name: str
    size: int
    description: Callable[[int], Description]
    trained: Sequence[int]  # indices of the prompts to train on, ascending
    repeats: None = None  # each is listed once

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < self.size:
            raise IndexError(f"{self.name} has prompts 0 to {self.size - 1}, not {index}")
        text = grammar.sentence(self.description(index))
        return Prompt(id=prompt_id(text), text=text, split=split_of(index, self.trained))

    def hold_out(self, share: float) -> ShapesCorpus:
        """The same prompts, of which a share of the combinations is never trained on, chosen by their hash.

        A combination is which colors and shapes come together, in whatever order, size and relation; so what
        is held out is not another wording of what is trained on. Every word stays in training, though, by
        the combination of it that would have been held out last.
        """
        limit = key_limit(share)
        keys = array("Q", (combination_key(self.description(index)) for index in range(self.size)))
        last: dict[str, int] = {}  # for each word, the largest key of its combinations
        for index, key in enumerate(keys):
            for word in grammar.sentence(self.description(index)).split():
                last[word] = max(last.get(word, 0), key)
        kept = {key for key in last.values() if key < limit}
        return replace(self, trained=array("i", (i for i, k in enumerate(keys) if k >= limit or k in kept)))

    def truth(self, prompt: Prompt) -> GroundTruth | None:
        """Exact geometry and color; None for sentences that leave a word open or are of another world."""
        description = grammar.describe(prompt.text)
        if description is None or not description.determined:
            return None
        return truth_of(description)

    def distractors(self) -> list[str]:
        """All 64 shape-color sentences and 64 of two objects."""
        pairs = [grammar.pair(i * (NUM_PAIRS // 64) + 7 * i) for i in range(64)]
        return [grammar.sentence(d) for d in [*grammar.singles(), *pairs]]


def combination_key(description: Description) -> int:
    """A 64-bit hash of which colors and shapes come together."""
    items = {f"{item.color or 'any'} {item.shape or 'thing'}" for item in description.items}
    return prompt_key(" and ".join(sorted(items)))


def _all_trained(name: str, size: int, description: Callable[[int], Description]) -> ShapesCorpus:
    return ShapesCorpus(name, size, description, range(size))


def shapes16() -> ShapesCorpus:
    """Every shape twice and every color twice."""
    return _all_trained("shapes16", 2 * NUM_SHAPES, _sixteen)


def shapes_fronts() -> ShapesCorpus:
    """The same sixteen with a dot on the front, which a Janus face has on other sides too."""
    return _all_trained("shapes-fronts", 2 * NUM_SHAPES, lambda index: replace(_sixteen(index), marked=True))


def _sixteen(index: int) -> Description:
    shape, second = divmod(index, 2)
    color = (shape + 3 * second) % NUM_COLORS
    return Description((Item(SHAPES[shape], tuple(COLORS)[color]),))


def shapes_open() -> ShapesCorpus:
    """What leaves a word open, "a cube" or "something red": a prompt has many right answers, and no truth."""
    descriptions = grammar.under_specified()
    return _all_trained("shapes-open", len(descriptions), descriptions.__getitem__)


def shapes_comp() -> ShapesCorpus:
    """512 compositions, a fifth held out.

    The 64 shape-color combinations plain, marked, small and large (256), and 256 pairs in which
    every item is four times the first and four times the second. A combination is held out where
    (shape + 2 * color + 3 * kind) % 5 == 0, a pair where its index is 0 modulo 5: every word, and
    every pair of a word and a kind, is still seen in training.
    """

    def description(index: int) -> Description:
        kind, item = divmod(index, 64)
        shape, color = SHAPES[item // NUM_COLORS], tuple(COLORS)[item % NUM_COLORS]
        if kind < 4:
            size = ("", "", "small", "large")[kind]
            return Description((Item(shape, color, size),), marked=kind == 1)
        # i -> 13 i + c modulo 64 is one-to-one (13 is odd), and i never maps to itself: 12 i + c is odd.
        other = (13 * item + 20 * (kind - 3) + 5) % 64
        second = Item(SHAPES[other // NUM_COLORS], tuple(COLORS)[other % NUM_COLORS])
        relation = grammar.RELATIONS[(item + kind) % len(grammar.RELATIONS)]
        return Description((Item(shape, color), second), relation=relation)

    def held_out(index: int) -> bool:
        kind, item = divmod(index, 64)
        if kind >= 4:
            return index % 5 == 0
        return (item // NUM_COLORS + 2 * (item % NUM_COLORS) + 3 * kind) % 5 == 0

    trained = array("i", (index for index in range(512) if not held_out(index)))
    return ShapesCorpus("shapes-comp", 512, description, trained)


def shapes100k() -> ShapesCorpus:
    """All 110,272 determined sentences, dealt by a fixed affine permutation so that any run of
    consecutive prompts is a fair sample."""
    singles = [Description((item,)) for item in SIZED_ITEMS] + grammar.marked()
    size = NUM_PAIRS + len(singles)

    def description(index: int) -> Description:
        place = (index * 48_611 + 7) % size  # 48,611 is prime and does not divide the size
        return singles[place] if place < len(singles) else grammar.pair(place - len(singles))

    return _all_trained("shapes100k", size, description)
