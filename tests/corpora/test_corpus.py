"""The named corpora: their prompts, order, held-out splits and ground truth."""

import hashlib
import math
from collections import Counter
from functools import cache

import pytest
import torch

from amortized.types import Prompt
from corpora import CORPORA, open_corpus
from corpora.shapes.corpus import shapes16, shapes100k, shapes_comp, shapes_open
from corpora.shapes.grammar import COLORS, NUM_PAIRS, RELATIONS, SHAPES, SIZES, describe, sentence, singles

SHAPED = [name for name in CORPORA if name.startswith("shapes")]


@cache
def prompts(name: str) -> list[Prompt]:
    corpus = open_corpus(name)
    return [corpus[index] for index in range(len(corpus))]


def digest(ids: list[str]) -> str:
    return hashlib.blake2b(" ".join(ids).encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize("name", CORPORA)
def test_prompts_of_a_corpus_are_distinct(name: str):
    corpus = open_corpus(name)
    assert corpus.name == name
    assert len({prompt.text for prompt in prompts(name)}) == len(corpus)
    assert len({prompt.id for prompt in prompts(name)}) == len(corpus)
    assert {prompt.split for prompt in prompts(name)} <= {"train", "heldout"}
    for index in (-1, len(corpus)):
        with pytest.raises(IndexError, match=f"{name} has prompts 0 to {len(corpus) - 1}, not {index}"):
            corpus[index]


@pytest.mark.parametrize(
    ("name", "first", "spaced"),
    [
        ("shapes16", "cda84796d3ac5b54", "cda84796d3ac5b54"),
        ("shapes-comp", "19e744bcdf0e6c6b", "6cc95b3035c558c7"),
        ("shapes100k", "c3ce42be68f97a31", "ae3405f1b9a66041"),
    ],
)
def test_the_same_index_is_the_same_prompt_on_every_machine(name: str, first: str, spaced: str):
    """A change here would change the training data of published runs."""
    ids = [f"{prompt.id} {prompt.text} {prompt.split}" for prompt in prompts(name)]
    assert digest(ids[:100]) == first
    assert digest(ids[:: max(1, len(ids) // 100)]) == spaced


def test_shapes16_has_every_shape_and_color_twice():
    items = [describe(prompt.text).items[0] for prompt in prompts("shapes16")]  # type: ignore[union-attr]
    assert Counter(item.shape for item in items) == dict.fromkeys(SHAPES, 2)
    assert Counter(item.color for item in items) == dict.fromkeys(COLORS, 2)


def test_fronts_are_the_sixteen_with_a_dot():
    dotted = [describe(prompt.text) for prompt in prompts("shapes-fronts")]
    assert all(description.marked for description in dotted)
    plain = [describe(prompt.text).items for prompt in prompts("shapes16")]
    assert [description.items for description in dotted] == plain


# ---- shapes-comp ------------------------------------------------------------------------------


def test_comp_holds_out_a_fifth_of_every_kind():
    held_out = [prompt.split == "heldout" for prompt in prompts("shapes-comp")]
    assert len(held_out) == 512
    assert 0.18 < sum(held_out) / 512 < 0.22
    for kind in range(8):
        assert 0.15 < sum(held_out[64 * kind : 64 * kind + 64]) / 64 < 0.25


def test_comp_trains_every_word_of_every_kind():
    all_words, trained = set(), set()
    for index, prompt in enumerate(prompts("shapes-comp")):
        words = {(min(index // 64, 4), word) for word in prompt.text.split()}
        all_words |= words
        trained |= words if prompt.split == "train" else set()
    assert trained == all_words
    used = {word for _, word in all_words}
    assert used >= {*SHAPES, *COLORS, *filter(None, SIZES), *" ".join(RELATIONS).split()}


def test_comp_trains_every_shape_and_color_as_first_and_second_item():
    for position in (0, 1):
        items = [
            describe(prompt.text).items[position]  # type: ignore[union-attr]
            for prompt in prompts("shapes-comp")[256:]
            if prompt.split == "train"
        ]
        assert {item.shape for item in items} == set(SHAPES)
        assert {item.color for item in items} == set(COLORS)


def test_comp_trains_nothing_that_is_held_out():
    texts = {"train": set(), "heldout": set()}
    for prompt in prompts("shapes-comp"):
        texts[prompt.split].add(prompt.text)
    assert not texts["train"] & texts["heldout"]


def test_comp_pairs_use_every_item_four_times_in_each_position():
    pairs = [shapes_comp().description(index) for index in range(256, 512)]
    firsts, seconds = (Counter(description.items[position] for description in pairs) for position in (0, 1))
    assert set(firsts.values()) == set(seconds.values()) == {4}
    assert len(firsts) == len(seconds) == 64
    assert all(description.items[0] != description.items[1] for description in pairs)
    assert len({description.items for description in pairs}) == 256
    assert min(Counter(description.relation for description in pairs).values()) > 80


# ---- shapes100k -------------------------------------------------------------------------------


def test_100k_has_every_fully_specified_sentence():
    corpus = shapes100k()
    assert len(corpus) == 110_272 == NUM_PAIRS + 192 + 64
    assert math.gcd(len(corpus), 48_611) == 1  # so that the affine map is a permutation
    # Sentences map one to one to descriptions, so as many distinct ones as possible means all of them.
    assert len({prompt.text for prompt in prompts("shapes100k")}) == len(corpus)
    assert all(describe(prompt.text) is not None for prompt in prompts("shapes100k")[::97])


@pytest.mark.parametrize("start", [0, 777, 54_321])
def test_100k_ranges_are_fair_samples(start: int):
    """Any 1000 consecutive prompts have every shape, color, size and relation about equally often."""
    run = [shapes100k().description(index) for index in range(start, start + 1000)]
    run = [description for description in run if description.relation]
    assert len(run) > 990
    for position in (0, 1):
        for word, choices in (("shape", SHAPES), ("color", COLORS), ("size", SIZES)):
            counts = Counter(getattr(description.items[position], word) for description in run)
            assert set(counts) == set(choices)
            assert max(counts.values()) < 1.25 * min(counts.values())
    counts = Counter(description.relation for description in run)
    assert len(counts) == 3 and max(counts.values()) < 1.1 * min(counts.values())


def test_100k_stores_no_sentences():
    """It stores only the 256 descriptions of single objects; pairs are computed."""
    stored = [cell.cell_contents for cell in shapes100k().description.__closure__]  # type: ignore[attr-defined]
    assert max(len(value) for value in stored if hasattr(value, "__len__")) == 256


# ---- truth and distractors --------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*SHAPED} - {"shapes-open"}))
def test_every_prompt_has_a_truth(name: str):
    corpus = open_corpus(name)
    points = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    for prompt in prompts(name)[:: max(1, len(corpus) // 64)]:
        truth = corpus.truth(prompt)
        assert truth is not None
        assert truth.sdf(points)[1] > 1 and truth.color(points).shape == (2, 3)
        assert (truth.front_mark is not None) == ("dot" in prompt.text)
        assert truth.kind in {*SHAPES, "pair"}


def test_underspecified_and_foreign_sentences_have_no_truth():
    corpus = shapes16()
    for text in ("a cube", "something red", "a cube next to a red sphere", "a corgi in a spaceship"):
        assert corpus.truth(Prompt(id="x", text=text)) is None


def test_truth_depends_on_the_sentence_alone():
    """The corpus need not contain it."""
    truth = shapes16().truth(Prompt(id="x", text="A large purple sphere."))
    assert truth is not None and truth.kind == "sphere"
    assert truth.sdf(torch.zeros(1, 3)).item() == pytest.approx(-0.56 * 1.15)
    assert truth.color(torch.zeros(1, 3))[0].tolist() == pytest.approx(COLORS["purple"])


@pytest.mark.parametrize("name", SHAPED)
def test_distractors(name: str):
    corpus = open_corpus(name)
    distractors = corpus.distractors()
    assert len(set(distractors)) == len(distractors) == 128
    assert {sentence(description) for description in singles()} <= set(distractors)
    assert all(describe(text) is not None for text in distractors)


def test_shapes16_has_a_hundred_distractors():
    texts = {prompt.text for prompt in prompts("shapes16")}
    assert texts < {sentence(description) for description in singles()}
    assert len(set(shapes16().distractors()) - texts) >= 100


def test_shapes_open_leaves_one_word_open():
    corpus = shapes_open()
    texts = [corpus[i].text for i in range(len(corpus))]
    assert len(texts) == len(set(texts)) == 16 and {"a cube", "something red"} <= set(texts)
    assert all(corpus.truth(corpus[i]) is None for i in range(16))
