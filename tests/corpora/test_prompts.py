"""Prompts from a list or a file."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import CORPORA, open_corpus, prompt_list, read_prompts
from corpora.prompts import prompt_id
from corpora.shapes.corpus import shapes16


def write(folder, data: bytes):
    path = folder / "prompts.txt"
    path.write_bytes(data)
    return path


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"a red cube\na caf\xc3\xa9\n",
        b"a red cube\r\na caf\xc3\xa9\r\n",
        b"\n  a red cube \n\n\t\na caf\xc3\xa9",
        b"\xef\xbb\xbfa red cube\na caf\xc3\xa9\n",  # a byte order mark, as some editors write
    ],
)
def test_one_prompt_a_line(tmp_path, data: bytes):
    assert read_prompts(write(tmp_path, data)) == ["a red cube", "a café"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a cube\n\na caf\xe9\n", "prompts.txt, line 3: not valid UTF-8"),
        ("a cube\n".encode("utf-16"), "prompts.txt, line 1: not valid UTF-8"),
        (b"a cube\na \0 sphere\n", "prompts.txt, line 2: holds a NUL byte"),
        (b"", "prompts.txt: holds no prompt"),
        (b" \n\n\t\n", "prompts.txt: holds no prompt"),
    ],
)
def test_errors_name_file_and_line(tmp_path, data: bytes, problem: str):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=problem) as error:
        read_prompts(path)
    assert str(path) in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(ValueError, match="cannot be read") as error:
            read_prompts(path)
        assert str(path) in str(error.value)


# ---- names ------------------------------------------------------------------------------------


def test_ids_never_change():
    """They name files and embedding rows of earlier runs."""
    assert prompt_id("a red cube") == "2659ed762035"
    assert prompt_id("a café") == "41456ceaf31a"


@given(st.text(min_size=1), st.text(min_size=1))
def test_ids_are_names_of_the_sentence(one: str, other: str):
    assert len(prompt_id(one)) == 12 and set(prompt_id(one)) <= set(string.hexdigits.lower())
    assert (prompt_id(one) == prompt_id(other)) == (one == other)


# ---- lists ------------------------------------------------------------------------------------


def test_a_list_keeps_order_and_drops_repetitions():
    corpus = prompt_list(["b", "a", "b", "c", "a"], "mine")
    assert [corpus[index].text for index in range(len(corpus))] == ["b", "a", "c"]
    assert [prompt.id for prompt in corpus.prompts] == [prompt_id(text) for text in "bac"]
    assert corpus.name == "mine" and {prompt.split for prompt in corpus.prompts} == {"train"}
    with pytest.raises(IndexError):
        corpus[3]


def test_a_list_without_background_knows_nothing():
    corpus = prompt_list(["a red cube"], "mine")
    assert corpus.truth(corpus[0]) is None
    assert list(corpus.distractors()) == []


def test_a_list_knows_what_its_background_knows():
    corpus = prompt_list(["a red cube", "a corgi"], "mine", background=shapes16())
    truth = corpus.truth(corpus[0])
    assert truth is not None and truth.kind == "cube"
    assert corpus.truth(corpus[1]) is None
    assert list(corpus.distractors()) == shapes16().distractors()


@pytest.mark.parametrize(
    ("texts", "problem"),
    [([], "mine holds no prompt"), (["a cube", " "], "mine: prompt 2 is empty"), ([""], "prompt 1 is empty")],
)
def test_nothing_to_say(texts: list[str], problem: str):
    with pytest.raises(ValueError, match=problem):
        prompt_list(texts, "mine")


# ---- by name ----------------------------------------------------------------------------------


def test_a_text_file_is_a_corpus(tmp_path):
    path = write(tmp_path, b"a cube\na sphere\na cube\n")
    corpus = open_corpus(str(path))
    assert [corpus[index].text for index in range(len(corpus))] == ["a cube", "a sphere"]
    assert corpus.name == str(path)


@pytest.mark.parametrize("name", ["shapes", "prompts.csv", ""])
def test_unknown_names(name: str):
    listed = f"one of {', '.join(CORPORA)}, or a .txt"
    with pytest.raises(ValueError, match=f"{listed}.* got '{name}'"):
        open_corpus(name)
