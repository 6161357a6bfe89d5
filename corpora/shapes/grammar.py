"""The grammar of the Shapes world: sentences and their parsed descriptions.

    a red cube | a small blue sphere | a green cone with a white dot on the front
    a red cube on top of a large blue sphere | ... next to ... | ... in front of ...
    a cube | something red                     (underspecified: any matching object is right)

Sentences and `Description`s map one to one: `describe` parses, `sentence` formats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from corpora.shapes.geometry import SOLIDS

SHAPES: tuple[str, ...] = tuple(SOLIDS)
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.95, 0.90, 0.12),
    "green": (0.12, 0.66, 0.16),
    "cyan": (0.12, 0.82, 0.86),
    "blue": (0.10, 0.20, 0.88),
    "purple": (0.55, 0.12, 0.78),
    "pink": (0.98, 0.56, 0.76),
}
WHITE = (0.97, 0.97, 0.97)
SIZES: dict[str, float] = {"small": 0.7, "": 1.0, "large": 1.15}
RELATIONS: tuple[str, ...] = ("on top of", "next to", "in front of")
MARK = "with a white dot on the front"


@dataclass(frozen=True)
class Item:
    """One solid. None is a word that the sentence leaves open."""

    shape: str | None
    color: str | None
    size: str = ""

    def phrase(self) -> str:
        if self.shape is None:
            return f"something {self.color}"
        words = " ".join(word for word in (self.size, self.color, self.shape) if word)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Description:
    """One item, possibly marked, or two items in a relation ("first on top of second")."""

    items: tuple[Item, ...]
    relation: str | None = None
    marked: bool = False

    @property
    def determined(self) -> bool:
        """True if the sentence leaves no word open, so that its geometry is known."""
        return all(item.shape is not None and item.color is not None for item in self.items)


def sentence(description: Description) -> str:
    """Format a description as a sentence."""
    text = f" {description.relation} ".join(item.phrase() for item in description.items)
    return f"{text} {MARK}" if description.marked else text


_ITEM = (
    rf"(?:(?:an?|the) (?:(?P<size{{0}}>{'|'.join(s for s in SIZES if s)}) )?"
    rf"(?:(?P<color{{0}}>{'|'.join(COLORS)}) )?(?P<shape{{0}}>{'|'.join(SHAPES)})"
    rf"|something (?P<only{{0}}>{'|'.join(COLORS)}))"
)
_SENTENCE = re.compile(
    rf"{_ITEM.format(0)}(?: (?P<relation>{'|'.join(RELATIONS)}) {_ITEM.format(1)}|(?P<mark> {MARK}))?"
)


def describe(text: str) -> Description | None:
    """Parse a sentence; None if it is not in the grammar.

    Case, a final period and the choice of article (a, an, the) do not matter.
    """
    match = _SENTENCE.fullmatch(text.strip().lower().rstrip("."))
    if match is None:
        return None

    def item(i: int) -> Item:
        color = match[f"color{i}"] or match[f"only{i}"]
        return Item(shape=match[f"shape{i}"], color=color, size=match[f"size{i}"] or "")

    items = (item(0), item(1)) if match["relation"] else (item(0),)
    return Description(items=items, relation=match["relation"], marked=match["mark"] is not None)


# Enumerations. Their order is part of the corpora: index i is the same sentence on every machine.

PLAIN_ITEMS: tuple[Item, ...] = tuple(Item(shape, color) for shape in SHAPES for color in COLORS)
SIZED_ITEMS: tuple[Item, ...] = tuple(
    Item(shape, color, size) for size in SIZES for shape in SHAPES for color in COLORS
)


def singles() -> list[Description]:
    """All 64 shape-color sentences."""
    return [Description((item,)) for item in PLAIN_ITEMS]


def marked() -> list[Description]:
    """All 64 sentences with a white dot on the front."""
    return [Description((item,), marked=True) for item in PLAIN_ITEMS]


def under_specified() -> list[Description]:
    """The eight sentences without a color, then the eight without a shape."""
    without_color = [Description((Item(shape, None),)) for shape in SHAPES]
    return without_color + [Description((Item(None, color),)) for color in COLORS]


def pair(index: int) -> Description:
    """Pair sentence number `index` of NUM_PAIRS, decoded as mixed radix (first, second, relation).

    Raises IndexError outside [0, NUM_PAIRS).
    """
    if not 0 <= index < NUM_PAIRS:
        raise IndexError(f"pairs are numbered 0 to {NUM_PAIRS - 1}, not {index}")
    index, relation = divmod(index, len(RELATIONS))
    first, second = divmod(index, len(SIZED_ITEMS) - 1)
    second += second >= first  # skips the first item: no pair repeats an item
    return Description((SIZED_ITEMS[first], SIZED_ITEMS[second]), relation=RELATIONS[relation])


NUM_PAIRS = len(SIZED_ITEMS) * (len(SIZED_ITEMS) - 1) * len(RELATIONS)  # 110,016


def fill(description: Description, shape_index: int, color_index: int) -> Description:
    """Fill every open word of a description with the word at the given index (modulo the vocabulary)."""
    colors = tuple(COLORS)
    items = tuple(
        Item(
            item.shape or SHAPES[shape_index % len(SHAPES)],
            item.color or colors[color_index % len(colors)],
            item.size,
        )
        for item in description.items
    )
    return Description(items, description.relation, description.marked)
