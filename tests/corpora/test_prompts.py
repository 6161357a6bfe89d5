"""What a prompt may be, its names, lists of them, and which are held out."""

import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import CORPORA, PUBLISHED, indices_of, open_corpus, prompt_list
from corpora.files import READERS
from corpora.prompts import MAX_CHARACTERS, checked, normalized, prompt_id, prompt_key, split_of
from corpora.shapes.corpus import shapes16
from corpora.shapes.grammar import describe

# ---- one prompt -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the prompt is empty"),
        (" \t\u3000 ", "the prompt is empty"),
        ("a \0 cube", "holds a NUL byte"),
        ("a \ud83d cube", "half of a surrogate pair"),
        ("a" * (MAX_CHARACTERS + 1), "4,097 characters; a prompt has at most 4,096"),
    ],
)
def test_what_is_no_prompt(text: str, problem: str):
    with pytest.raises(ValueError, match=f"^here: .*{problem}"):
        checked(text, "here")


def test_what_is_a_prompt():
    for text in ("a cube", "a caf\u00e9 \U0001f600", "a" * MAX_CHARACTERS):
        assert checked(f"  {text}\n", "here") == text


# ---- names ------------------------------------------------------------------------------------


def test_ids_never_change():
    """They name files and embedding rows of earlier runs."""
    assert prompt_id("a red cube") == "d9909b205c5978c8"
    assert prompt_id("a café") == "0e9caa7a26b47c9f"


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(WORDS, WORDS)
def test_ids_are_names_of_the_sentence(one: str, other: str):
    assert len(prompt_id(one)) == 16 and set(prompt_id(one)) <= set(string.hexdigits.lower())
    assert (prompt_id(one) == prompt_id(other)) == (one == other)


# ---- lists ------------------------------------------------------------------------------------


def test_a_list_keeps_order_and_drops_repetitions():
    corpus = prompt_list(["b", "a", "b", "c", "a"], "mine")
    assert [corpus[index].text for index in range(len(corpus))] == ["b", "a", "c"]
    assert [corpus[index].id for index in range(3)] == [prompt_id(text) for text in "bac"]
    assert corpus.name == "mine" and list(corpus.trained) == [0, 1, 2]
    assert corpus.repeats.tolist() == [2, 2, 1]
    with pytest.raises(IndexError):
        corpus[3]


def test_a_list_without_background_knows_nothing():
    corpus = prompt_list(["a red cube"], "mine")
    assert corpus.truth(corpus[0]) is None
    assert list(corpus.distractors()) == []


def test_a_list_knows_what_its_background_knows():
    corpus = prompt_list(["a red cube", "a corgi"], "mine", truth_from=shapes16())
    truth = corpus.truth(corpus[0])
    assert truth is not None and truth.kind == "cube"
    assert corpus.truth(corpus[1]) is None
    assert list(corpus.distractors()) == shapes16().distractors()


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([], "mine: holds no prompt"),
        (["a cube", " "], "mine, prompt 2: the prompt is empty"),
        ([""], "mine, prompt 1: the prompt is empty"),
    ],
)
def test_nothing_to_say(texts: list[str], problem: str):
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


def test_a_published_corpus_that_is_not_here_says_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match="not here yet: .* python -m corpora import df415 dreamfusion_415"):
        open_corpus("df415", folder=tmp_path)


# ---- held out ---------------------------------------------------------------------------------


def test_case_and_full_stop_are_no_difference():
    assert normalized("  A  Red\tCUBE. ") == "a red cube" == normalized("a red cube")
    assert prompt_key("A red cube.") == prompt_key("a red cube") != prompt_key("a red cone")
    assert normalized("\uff21 cube") == "a cube"  # a full-width letter is the letter


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_share_is_held_out_whatever_the_order(share: float):
    texts = [f"prompt number {number}" for number in range(4000)]
    forward = prompt_list(texts, "mine").hold_out(share)
    backward = prompt_list(texts[::-1], "mine").hold_out(share)
    held = {forward[int(index)].text for index in indices_of(forward, "heldout")}
    assert held == {backward[int(index)].text for index in indices_of(backward, "heldout")}
    # Binomial: four standard deviations.
    assert abs(len(held) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    more = prompt_list(texts + ["one more", "PROMPT number 7."], "mine").hold_out(share)
    assert held == {more[int(i)].text for i in indices_of(more, "heldout")} & {*texts}
    assert ("PROMPT number 7." in {more[int(i)].text for i in more.trained}) == (texts[7] not in held)


@pytest.mark.parametrize("share", [0.1, 0.2])
@pytest.mark.parametrize("name", ["at2520", "shapes-comp", "shapes100k"])
def test_a_share_of_a_grammar_is_held_out_and_every_word_is_seen(name: str, share: float):
    corpus = open_corpus(name, held_out=share)
    seen: Counter[str] = Counter()
    for index in corpus.trained:
        seen.update(corpus[int(index)].text.split())
    held = [corpus[int(index)] for index in indices_of(corpus, "heldout")]
    grammar = [prompt for prompt in held if not prompt.text.startswith("a pig") or "wearing" in prompt.text]
    # Of shapes, whole combinations are: some 2,000 of very different sizes, hence the width.
    assert 0.7 * share < len(held) / len(corpus) < 1.3 * share
    assert {prompt.split for prompt in held} == {"heldout"}
    assert all(seen[word] > 1 for prompt in grammar for word in prompt.text.split())


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["shapes16", "shapes-fronts", "shapes-open", "shapes-comp"])
def test_what_is_held_out_of_shapes_is_a_combination_and_no_word(name: str, share: float):
    corpus = open_corpus(name, held_out=share)

    def combination(text: str) -> frozenset[tuple]:
        return frozenset((item.color, item.shape) for item in describe(text).items)

    texts = [corpus[index].text for index in range(len(corpus))]
    trained = [corpus[int(index)].text for index in corpus.trained]
    held = {*texts} - {*trained}
    assert {combination(text) for text in held}.isdisjoint(combination(text) for text in trained)
    assert {word for text in texts for word in text.split()} == {w for text in trained for w in text.split()}
    # Of shapes-open, every sentence has a word of its own.
    assert bool(held) == (name != "shapes-open") or share < 0.1


def test_held_out_pairs_are_not_trained_the_other_way_round():
    """Nor in other sizes or relations: "a red cube next to a blue ball" says as much as its mirror."""
    corpus = open_corpus("shapes100k", held_out=0.05)
    sides: dict[frozenset, set[str]] = {}
    for index in range(0, len(corpus), 7):
        prompt = corpus[index]
        items = frozenset((item.color, item.shape) for item in describe(prompt.text).items)
        sides.setdefault(items, set()).add(prompt.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert {"train"} in sides.values() and {"heldout"} in sides.values()


@pytest.mark.parametrize("share", [-0.1, 1.0, 7.0])
def test_a_share_is_a_share(share: float):
    with pytest.raises(ValueError, match=r"held_out must lie in \[0, 1\)"):
        open_corpus("shapes16", held_out=share)


@given(st.sets(st.integers(0, 50)))
def test_membership_by_bisection(chosen: set[int]):
    trained = sorted(chosen)
    for index in range(51):
        assert split_of(index, trained) == ("train" if index in chosen else "heldout")


def test_parts_of_a_corpus():
    corpus = open_corpus("at2520")
    assert len(corpus) == 2576 and len(corpus.trained) == 2520 == len(indices_of(corpus, "test"))
    assert list(indices_of(corpus, "heldout")) == list(indices_of(corpus, "val")) == list(range(2520, 2576))
    assert list(indices_of(corpus, "all")) == list(range(2576))
    with pytest.raises(ValueError, match="no list named val: use all, train or heldout"):
        indices_of(shapes16(), "val")
    with pytest.raises(ValueError, match="no prompt in 'heldout'"):
        indices_of(shapes16(), "heldout")
