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
    """Prompts computed from their index: nothing is stored, so the size costs no memory."""

    name: str
    size: int
    description: Callable[[int], Description]
    trained: Sequence[int]  # indices of the prompts to train on, ascending
    repeats: None = None  # each prompt is listed once

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < self.size:
            raise IndexError(f"{self.name} has prompts 0 to {self.size - 1}, not {index}")
        text = grammar.sentence(self.description(index))
        return Prompt(id=prompt_id(text), text=text, split=split_of(index, self.trained))

    def hold_out(self, fraction: float) -> ShapesCorpus:
        """The same prompts, with a fraction of the combinations held out from training by their hash.

        A combination is the set of color-shape pairs of a prompt, in any order, size and relation, so no
        held-out prompt is a rewording of a trained one. Every word stays in training: if all combinations
        of a word would be held out, the one with the largest key is trained. Raises ValueError for a
        fraction outside [0, 1).
        """
        limit = key_limit(fraction)
        keys = array("Q", (combination_key(self.description(index)) for index in range(self.size)))
        largest: dict[str, int] = {}  # word to the largest key of its combinations
        for index, key in enumerate(keys):
            for word in grammar.sentence(self.description(index)).split():
                largest[word] = max(largest.get(word, 0), key)
        rescued = {key for key in largest.values() if key < limit}
        trained = (index for index, key in enumerate(keys) if key >= limit or key in rescued)
        return replace(self, trained=array("i", trained))

    def truth(self, prompt: Prompt) -> GroundTruth | None:
        """Exact geometry and color; None if the text is underspecified or not a sentence of this grammar."""
        description = grammar.describe(prompt.text)
        if description is None or not description.determined:
            return None
        return truth_of(description)

    def distractors(self) -> list[str]:
        """All 64 shape-color sentences and 64 pair sentences."""
        pairs = [grammar.pair(i * (NUM_PAIRS // 64) + 7 * i) for i in range(64)]
        return [grammar.sentence(d) for d in [*grammar.singles(), *pairs]]


def combination_key(description: Description) -> int:
    """A 64-bit hash of the set of color-shape pairs."""
    items = {f"{item.color or 'any'} {item.shape or 'thing'}" for item in description.items}
    return prompt_key(" and ".join(sorted(items)))


def _all_trained(name: str, size: int, description: Callable[[int], Description]) -> ShapesCorpus:
    return ShapesCorpus(name, size, description, range(size))


def shapes16() -> ShapesCorpus:
    """16 prompts: every shape twice and every color twice."""
    return _all_trained("shapes16", 2 * NUM_SHAPES, _sixteen)


def shapes_fronts() -> ShapesCorpus:
    """The prompts of shapes16 with a dot on the front, which a Janus failure repeats on other sides."""
    return _all_trained("shapes-fronts", 2 * NUM_SHAPES, lambda index: replace(_sixteen(index), marked=True))


def _sixteen(index: int) -> Description:
    shape, second = divmod(index, 2)
    color = (shape + 3 * second) % NUM_COLORS
    return Description((Item(SHAPES[shape], tuple(COLORS)[color]),))


def shapes_open() -> ShapesCorpus:
    """16 underspecified prompts such as "a cube" or "something red": many right answers, no ground truth."""
    descriptions = grammar.under_specified()
    return _all_trained("shapes-open", len(descriptions), descriptions.__getitem__)


def shapes_comp() -> ShapesCorpus:
    """512 compositions, a fifth of them held out.

    The 64 shape-color items plain, marked, small and large (256 prompts), and 256 pairs in which every item
    comes first four times and second four times. An item is held out if (shape + 2 * color + 3 * kind) % 5
    == 0, a pair if its index is a multiple of 5. Every word, and every combination of a word and a kind,
    still occurs in training.
    """

    def description(index: int) -> Description:
        kind, item = divmod(index, 64)
        shape, color = SHAPES[item // NUM_COLORS], tuple(COLORS)[item % NUM_COLORS]
        if kind < 4:
            size = ("", "", "small", "large")[kind]
            return Description((Item(shape, color, size),), marked=kind == 1)
        # i -> 13 i + c modulo 64 is a bijection, as 13 is odd, without fixed points, as 12 i + c is odd.
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
    """All 110,272 fully specified prompts, in a fixed affine permutation.

    Any range of consecutive prompts is therefore a fair sample of shapes, colors, sizes and relations.
    """
    singles = [Description((item,)) for item in SIZED_ITEMS] + grammar.marked()
    size = NUM_PAIRS + len(singles)

    def description(index: int) -> Description:
        # A permutation: 48,611 is prime and does not divide the size. Both numbers are choices.
        number = (index * 48_611 + 7) % size
        return singles[number] if number < len(singles) else grammar.pair(number - len(singles))

    return _all_trained("shapes100k", size, description)
