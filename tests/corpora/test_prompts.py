"""Validation of prompts, their ids, lists of them, and held-out splits."""

import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import CORPORA, PUBLISHED, indices_of, open_corpus, prompt_list
from corpora.files import READERS
from corpora.prompts import MAX_CHARACTERS, normalized, prompt_id, prompt_key, split_of, validate_prompt
from corpora.shapes.corpus import shapes16
from corpora.shapes.grammar import describe

# ---- one prompt -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the prompt is empty"),
        (" \t\u3000 ", "the prompt is empty"),
        ("a \0 cube", "contains a NUL byte"),
        ("a \ud83d cube", "an unpaired surrogate"),
        ("a" * (MAX_CHARACTERS + 1), "4,097 characters; a prompt has at most 4,096"),
    ],
)
def test_invalid_prompts_raise(text: str, problem: str):
    with pytest.raises(ValueError, match=f"^here: .*{problem}"):
        validate_prompt(text, "here")


def test_valid_prompts_are_stripped():
    for text in ("a cube", "a caf\u00e9 \U0001f600", "a" * MAX_CHARACTERS):
        assert validate_prompt(f"  {text}\n", "here") == text


# ---- names ------------------------------------------------------------------------------------


def test_ids_never_change():
    """Files and embedding rows of earlier runs are named after them."""
    assert prompt_id("a red cube") == "d9909b205c5978c8"
    assert prompt_id("a café") == "0e9caa7a26b47c9f"


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(WORDS, WORDS)
def test_ids_are_a_hash_of_the_text(one: str, other: str):
    assert len(prompt_id(one)) == 16 and set(prompt_id(one)) <= set(string.hexdigits.lower())
    assert (prompt_id(one) == prompt_id(other)) == (one == other)


# ---- lists ------------------------------------------------------------------------------------


def test_a_list_keeps_its_order_and_drops_repeats():
    corpus = prompt_list(["b", "a", "b", "c", "a"], "mine")
    assert [corpus[index].text for index in range(len(corpus))] == ["b", "a", "c"]
    assert [corpus[index].id for index in range(3)] == [prompt_id(text) for text in "bac"]
    assert corpus.name == "mine" and list(corpus.trained) == [0, 1, 2]
    assert corpus.repeats.tolist() == [2, 2, 1]
    with pytest.raises(IndexError):
        corpus[3]


def test_a_list_alone_has_no_truth():
    corpus = prompt_list(["a red cube"], "mine")
    assert corpus.truth(corpus[0]) is None
    assert list(corpus.distractors()) == []


def test_a_list_takes_truth_from_another_corpus():
    corpus = prompt_list(["a red cube", "a corgi"], "mine", truth_from=shapes16())
    truth = corpus.truth(corpus[0])
    assert truth is not None and truth.kind == "cube"
    assert corpus.truth(corpus[1]) is None
    assert list(corpus.distractors()) == shapes16().distractors()


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([], "mine: contains no prompts"),
        (["a cube", " "], "mine, prompt 2: the prompt is empty"),
        ([""], "mine, prompt 1: the prompt is empty"),
    ],
)
def test_empty_lists_and_prompts_raise(texts: list[str], problem: str):
    with pytest.raises(ValueError, match=problem):
        prompt_list(texts, "mine")


# ---- by name ----------------------------------------------------------------------------------


def test_a_file_is_a_corpus(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"a cube\na sphere\na cube\n")
    corpus = open_corpus(str(path))
    assert [corpus[index].text for index in range(len(corpus))] == ["a cube", "a sphere"]
    assert corpus.name == str(path)


@pytest.mark.parametrize("name", ["shapes", "prompts.docx", ""])
def test_unknown_names(name: str):
    listed = ", ".join(sorted({*CORPORA, *PUBLISHED}))
    with pytest.raises(ValueError, match=f"one of {listed}, or a {', '.join(READERS)} file, got '{name}'"):
        open_corpus(name)


def test_a_corpus_that_is_not_imported_says_how_to_import_it(tmp_path):
    with pytest.raises(
        ValueError, match="not imported yet: .* amortized corpora import df415 dreamfusion_415"
    ):
        open_corpus("df415", folder=tmp_path)


# ---- held out ---------------------------------------------------------------------------------


def test_case_and_final_period_do_not_matter():
    assert normalized("  A  Red\tCUBE. ") == "a red cube" == normalized("a red cube")
    assert prompt_key("A red cube.") == prompt_key("a red cube") != prompt_key("a red cone")
    assert normalized("\uff21 cube") == "a cube"  # a full-width letter equals the letter


@pytest.mark.parametrize("fraction", [0.05, 0.2])
def test_a_fraction_is_held_out_independently_of_order(fraction: float):
    texts = [f"prompt number {number}" for number in range(4000)]
    forward = prompt_list(texts, "mine").hold_out(fraction)
    backward = prompt_list(texts[::-1], "mine").hold_out(fraction)
    held_out = {forward[int(index)].text for index in indices_of(forward, "heldout")}
    assert held_out == {backward[int(index)].text for index in indices_of(backward, "heldout")}
    # Binomial: four standard deviations.
    assert abs(len(held_out) / 4000 - fraction) < 4 * (fraction * (1 - fraction) / 4000) ** 0.5
    more = prompt_list(texts + ["one more", "PROMPT number 7."], "mine").hold_out(fraction)
    assert held_out == {more[int(i)].text for i in indices_of(more, "heldout")} & {*texts}
    assert ("PROMPT number 7." in {more[int(i)].text for i in more.trained}) == (texts[7] not in held_out)


@pytest.mark.parametrize("fraction", [0.1, 0.2])
@pytest.mark.parametrize("name", ["at2520", "shapes-comp", "shapes100k"])
def test_a_fraction_of_a_grammar_is_held_out_and_every_word_is_trained(name: str, fraction: float):
    corpus = open_corpus(name, held_out=fraction)
    trained_words: Counter[str] = Counter()
    for index in corpus.trained:
        trained_words.update(corpus[int(index)].text.split())
    held_out = [corpus[int(index)] for index in indices_of(corpus, "heldout")]
    grammar = [
        prompt for prompt in held_out if not prompt.text.startswith("a pig") or "wearing" in prompt.text
    ]
    # Shapes are held out by combination: some 2,000 of very different sizes, so the bounds are wide.
    assert 0.7 * fraction < len(held_out) / len(corpus) < 1.3 * fraction
    assert {prompt.split for prompt in held_out} == {"heldout"}
    assert all(trained_words[word] > 1 for prompt in grammar for word in prompt.text.split())


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["shapes16", "shapes-fronts", "shapes-open", "shapes-comp"])
def test_shapes_are_held_out_by_combination_and_never_by_word(name: str, fraction: float):
    corpus = open_corpus(name, held_out=fraction)

    def combination(text: str) -> frozenset[tuple]:
        return frozenset((item.color, item.shape) for item in describe(text).items)

    texts = [corpus[index].text for index in range(len(corpus))]
    trained = [corpus[int(index)].text for index in corpus.trained]
    held_out = {*texts} - {*trained}
    assert {combination(text) for text in held_out}.isdisjoint(combination(text) for text in trained)
    assert {word for text in texts for word in text.split()} == {w for text in trained for w in text.split()}
    # In shapes-open every sentence has a word that no other has, so none can be held out.
    assert bool(held_out) == (name != "shapes-open") or fraction < 0.1


def test_held_out_pairs_are_not_trained_in_reverse_order():
    """Nor in other sizes or relations: "a red cube next to a blue ball" means the same reversed."""
    corpus = open_corpus("shapes100k", held_out=0.05)
    splits_of: dict[frozenset, set[str]] = {}
    for index in range(0, len(corpus), 7):
        prompt = corpus[index]
        items = frozenset((item.color, item.shape) for item in describe(prompt.text).items)
        splits_of.setdefault(items, set()).add(prompt.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert {"train"} in splits_of.values() and {"heldout"} in splits_of.values()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 7.0])
def test_a_fraction_out_of_range_raises(fraction: float):
    with pytest.raises(ValueError, match=r"held_out must lie in \[0, 1\)"):
        open_corpus("shapes16", held_out=fraction)


@given(st.sets(st.integers(0, 50)))
def test_split_of_is_membership(chosen: set[int]):
    trained = sorted(chosen)
    for index in range(51):
        assert split_of(index, trained) == ("train" if index in chosen else "heldout")


def test_splits_of_a_corpus():
    corpus = open_corpus("at2520")
    assert len(corpus) == 2576 and len(corpus.trained) == 2520 == len(indices_of(corpus, "test"))
    assert list(indices_of(corpus, "heldout")) == list(indices_of(corpus, "val")) == list(range(2520, 2576))
    assert list(indices_of(corpus, "all")) == list(range(2576))
    with pytest.raises(ValueError, match="no list named val: use all, train or heldout"):
        indices_of(shapes16(), "val")
    with pytest.raises(ValueError, match="no prompt in 'heldout'"):
        indices_of(shapes16(), "heldout")
