"""Sentences and descriptions map one to one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.shapes.geometry import FRONT_X, SOLIDS, SPANS
from corpora.shapes.grammar import (
    COLORS,
    NUM_PAIRS,
    PLAIN_ITEMS,
    RELATIONS,
    SHAPES,
    SIZED_ITEMS,
    SIZES,
    Description,
    Item,
    describe,
    fill,
    marked,
    pair,
    sentence,
    singles,
    under_specified,
)

ONE_ITEM = [*singles(), *marked(), *under_specified(), *(Description((item,)) for item in SIZED_ITEMS)]
pairs = st.integers(0, NUM_PAIRS - 1)


def test_every_word_has_a_geometry_or_a_color():
    assert SHAPES == tuple(SOLIDS) == tuple(SPANS) == tuple(FRONT_X)
    assert len(set(COLORS.values())) == len(COLORS) == 8
    assert all(0 <= value <= 1 for color in COLORS.values() for value in color)


@pytest.mark.parametrize(
    ("description", "text"),
    [
        (Description((Item("cube", "red"),)), "a red cube"),
        (Description((Item("torus", "orange"),)), "an orange torus"),
        (Description((Item("torus", "orange", "small"),)), "a small orange torus"),
        (Description((Item("octahedron", None),)), "an octahedron"),
        (Description((Item(None, "orange"),)), "something orange"),
        (
            Description((Item("cone", "green"),), marked=True),
            "a green cone with a white dot on the front",
        ),
        (
            Description((Item("cube", "orange"), Item("sphere", "blue", "large")), relation="on top of"),
            "an orange cube on top of a large blue sphere",
        ),
        (
            Description((Item(None, "red"), Item("cube", None)), relation="in front of"),
            "something red in front of a cube",
        ),
    ],
)
def test_sentences_verbatim(description: Description, text: str):
    assert sentence(description) == text
    assert describe(text) == description


def test_one_item_sentences_round_trip_and_differ():
    assert [describe(sentence(description)) for description in ONE_ITEM] == ONE_ITEM
    # The unsized items are also among the singles.
    assert len({sentence(description) for description in ONE_ITEM}) == 64 + 64 + 16 + 192 - 64


@given(pairs)
def test_pair_sentences_round_trip(index: int):
    assert describe(sentence(pair(index))) == pair(index)


@given(pairs, st.booleans(), st.sampled_from(["", ".", "  "]))
def test_case_final_period_and_article_do_not_matter(index: int, upper: bool, end: str):
    text = sentence(pair(index))
    changed = re.sub(r"\ban?\b", "the", text) + end
    assert describe(changed.upper() if upper else changed) == pair(index)


@given(pairs)
def test_pairs_are_a_mixed_radix_number(index: int):
    description = pair(index)
    first, second = (SIZED_ITEMS.index(item) for item in description.items)
    assert first != second
    other = second - (second > first)
    relation = RELATIONS.index(description.relation or "")
    assert (first * (len(SIZED_ITEMS) - 1) + other) * len(RELATIONS) + relation == index


def test_all_pairs_differ():
    assert NUM_PAIRS == 192 * 191 * 3 == 110_016
    assert len({pair(index) for index in range(NUM_PAIRS)}) == NUM_PAIRS


@pytest.mark.parametrize("index", [-1, NUM_PAIRS])
def test_a_pair_index_out_of_range_raises(index: int):
    with pytest.raises(IndexError, match="pairs are numbered 0 to 110015"):
        pair(index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "red cube",
        "a red",
        "a cube red",
        "a red red cube",
        "a crimson cube",
        "a red dog",
        "a tiny red cube",
        "a red small cube",
        "something",
        "something small red",
        "something red cube",
        "a red cube and a blue sphere",
        "a red cube behind a blue sphere",
        "a red cube on top of",
        "a red cube on top of a blue sphere next to a green cone",
        "a red cube, front view",
        "a red cube with a white dot",
        "a red cube with a white dot on the back",
        "a red cube on top of a blue sphere with a white dot on the front",
        "a  red cube",
        "a redcube",
        "xa red cube",
        "a red cubes",
        "a red cube\na red cube",
    ],
)
def test_texts_outside_the_grammar_are_not_parsed(text: str):
    assert describe(text) is None


def test_determined_sentences():
    assert all(d.determined for d in [*singles(), *marked(), pair(0)])
    assert not any(d.determined for d in under_specified())
    assert len(under_specified()) == 16
    assert describe("a red cube next to a sphere").determined is False  # type: ignore[union-attr]


@given(st.sampled_from(ONE_ITEM), st.integers(0, 99), st.integers(0, 99))
def test_fill_changes_open_words_only(description: Description, shape: int, color: int):
    filled = fill(description, shape, color)
    (item,), (filled_item,) = description.items, filled.items
    assert filled.determined and filled.marked == description.marked
    assert filled_item.shape == (item.shape or SHAPES[shape % 8])
    assert filled_item.color == (item.color or tuple(COLORS)[color % 8])
    assert filled_item.size == item.size


@given(pairs)
def test_fill_keeps_determined_sentences(index: int):
    assert fill(pair(index), 3, 5) == pair(index)


def test_fill_of_a_pair():
    open_pair = describe("something red on top of a small cube")
    assert open_pair is not None
    assert sentence(fill(open_pair, 1, 5)) == "a red sphere on top of a small blue cube"


def test_item_lists():
    assert PLAIN_ITEMS == tuple(item for item in SIZED_ITEMS if not item.size)[:64]
    assert len(set(PLAIN_ITEMS)) == 64 and len(set(SIZED_ITEMS)) == 192
    assert {item.size for item in SIZED_ITEMS} == set(SIZES)
