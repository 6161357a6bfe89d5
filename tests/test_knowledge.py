"""What a generator was trained on, as its export says it."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from amortized.knowledge import (
    MAX_PROMPTS,
    PROMPTS,
    Knowledge,
    knowledge_of,
    read_knowledge,
    to_json,
    words_of,
)
from corpora import open_corpus, prompt_list


@pytest.mark.parametrize("number", [1, 16, MAX_PROMPTS, MAX_PROMPTS + 1, 3 * MAX_PROMPTS + 7])
def test_the_list_is_bounded_and_even_and_the_words_are_of_all(number):
    known = knowledge_of(prompt_list([f"thing {i}" for i in range(number)], "things"))
    assert known.number == number and len(known.prompts) == min(number, MAX_PROMPTS)
    numbers = [int(prompt.split()[1]) for prompt in known.prompts]
    gaps = {after - before for before, after in zip(numbers, numbers[1:], strict=False)}
    assert numbers[0] == 0 and (not gaps or max(gaps) - min(gaps) <= 1)
    assert known.words[0] == "thing" and len(known.words) == number + 1


def test_held_out_prompts_are_not_known():
    corpus = open_corpus("shapes-comp")
    known, trained = knowledge_of(corpus), [corpus[i].text for i in corpus.trained]
    assert known.number == len(trained) < len(corpus) and set(known.prompts) <= set(trained)
    counts = Counter(word for text in trained for word in text.lower().split())
    assert set(known.words) == set(counts) and known.words[0] == counts.most_common(1)[0][0]


def test_a_path_is_not_published():
    assert knowledge_of(prompt_list(["a cube"], "/home/me/secret/prompts.txt")).corpus == "prompts.txt"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red cube.", ["a", "red", "cube"]),
        ("don't; snake_case", ["don't", "snake", "case"]),
        ("\u00c9t\u00e9 \u2014 \u732b\U0001f431", ["\u00e9t\u00e9", "\u732b"]),
        ("<b>3D</b>", ["b", "3d", "b"]),
        ("\U0001f431 !", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_it_is_read_as_it_was_written(tmp_path):
    known = knowledge_of(open_corpus("shapes16"))
    assert read_knowledge(tmp_path) is None
    (tmp_path / PROMPTS).write_text(json.dumps(to_json(known)))
    assert read_knowledge(tmp_path) == known


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": "a red cube"},
        {"prompts": [1]},
        {"prompts": [""]},
        {"prompts": ["x" * 401]},
        {"prompts": ["x"] * (MAX_PROMPTS + 1)},
        {"words": None},
        {"words": [["a"]]},
        {"number": -1},
        {"number": True},
        {"number": "16"},
        {"corpus": None},
        {"corpus": "x" * 401},
    ],
)
def test_a_strange_file_is_refused_in_one_sentence(tmp_path, change):
    known = Knowledge(corpus="c", number=1, prompts=("a cube",), words=("a", "cube"))
    (tmp_path / PROMPTS).write_text(json.dumps(to_json(known) | change))
    with pytest.raises(ValueError, match=PROMPTS):
        read_knowledge(tmp_path)
