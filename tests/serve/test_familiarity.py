"""How far a sentence is from the training prompts, with embeddings that are known exactly."""

from __future__ import annotations

import pytest
import torch

from amortized.knowledge import Knowledge, words_of
from amortized.serve.familiarity import SAMPLE, Familiarity, sentences

COLORS, SHAPES = ("red", "green", "blue"), ("cube", "cone", "ball")
VOCABULARY = {word: number for number, word in enumerate((*COLORS, *SHAPES, "a"))}


def embed(texts):
    """Counts of the known words; the last component counts the others."""
    rows = torch.zeros(len(texts), len(VOCABULARY) + 1)
    for row, text in zip(rows, texts, strict=True):
        for word in words_of(text):
            row[VOCABULARY.get(word, len(VOCABULARY))] += 1
    return rows


def familiar(prompts):
    words = dict.fromkeys(word for prompt in prompts for word in words_of(prompt))
    known = Knowledge(corpus="c", number=len(prompts), prompts=tuple(prompts), words=tuple(words))
    return Familiarity(known, embed)


PROMPTS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES if (color, shape) != ("blue", "ball")]


def test_distances_are_those_of_the_embeddings():
    found = familiar(PROMPTS)("a blue ball")
    assert not found["trained"] and not found["far"] and found["unseen_words"] == []
    # Two of three words are shared: one minus a cosine of 2/3, as between any trained prompt and its nearest.
    assert (
        found["distance"]
        == pytest.approx(1 / 3, abs=1e-4)
        == pytest.approx(found["usual_distance"], abs=1e-4)
    )
    assert {one["prompt"] for one in found["nearest"]} <= set(PROMPTS)
    assert sentences(found) == []


@pytest.mark.parametrize("prompt", ["a red cube", "A red  cube."])
def test_a_trained_prompt_is_its_own_nearest(prompt):
    found = familiar(PROMPTS)(prompt)
    assert found["trained"] and not found["far"] and found["nearest"][0]["prompt"] == "a red cube"


def test_a_far_sentence_is_said_to_be_far_with_its_unseen_words():
    found = familiar(PROMPTS)("corgi riding one <b>bicycle</b>")
    assert found["far"] and found["unseen_words"] == ["corgi", "riding", "one", "b", "bicycle"]
    said = sentences(found, ["It is cut."])
    assert (
        "\u201ccorgi\u201d" in said[0]
        and "far from the training prompts" in said[1]
        and said[2] == "It is cut."
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_prompts(number):
    found = familiar(PROMPTS[:number])("a dragon")
    assert len(found["nearest"]) == number and found["unseen_words"][-1] == "dragon"
    assert (found["distance"] is None) == (number == 0)


def test_a_prompt_outside_the_sample_is_found_by_its_words():
    prompts = [f"thing {number}" for number in range(2 * SAMPLE)] + ["a blue ball"]
    found = familiar(prompts)("one blue ball")
    assert found["nearest"][0]["prompt"] == "a blue ball"


@pytest.mark.parametrize("prompt", ["!", "\U0001f431", "x" * 400, "a " * 200])
def test_any_text_has_a_finite_distance(prompt):
    found = familiar(PROMPTS)(prompt)
    assert 0 <= found["distance"] <= 2 and isinstance(found["far"], bool)
