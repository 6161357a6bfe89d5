"""Hashes and readable names of texts."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.names import slug, text_hash

TEXTS = st.text(st.characters(codec=None), max_size=300)  # all of Unicode, lone surrogates included


def test_a_text_hash_is_sixteen_hexadecimal_digits_and_never_changes():
    # Prompt ids, shard keys and folder names depend on it.
    assert text_hash("a red cube") == "d9909b205c5978c8"
    assert text_hash("a corgi") == hashlib.blake2b(b"a corgi", digest_size=8).hexdigest()
    assert re.fullmatch("[0-9a-f]{16}", text_hash("ü" * 1000))
    assert text_hash("a corgi") != text_hash("a corgi ")


@given(text=TEXTS, limit=st.integers(10, 80))
def test_a_slug_of_any_text_is_a_short_plain_file_name_that_ends_with_its_hash(text, limit):
    name = slug(text, limit)
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name)
    assert len(name) <= limit
    assert name.endswith("-" + text_hash(text)[:8])


@given(words=st.lists(st.from_regex("[a-z0-9]{1,5}", fullmatch=True), min_size=1, max_size=5))
def test_a_slug_reads_as_its_words_if_they_fit(words):
    assert slug(" ".join(words)).rpartition("-")[0] == "-".join(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Corgi's café, 50% off!", "a-corgis-cafe-50-off"),
        ("../../etc/passwd\0\n", "etc-passwd"),
        ("a very long description of a thing that does not fit", "a-very-long-description-of-a"),
        ("x" * 100, "x" * 31),
        ("小狗", "text"),
        ("", "text"),
        ("-rf --", "rf"),
    ],
)
def test_slugs_of_awkward_texts(text, words):
    assert slug(text).rpartition("-")[0] == words


def test_texts_with_equal_words_have_different_slugs():
    texts = ["a red cube", "A red cube", "a red  cube", "a red cube!", "小狗", "小猫"]
    assert len({slug(text) for text in texts}) == len(texts)


def test_a_limit_without_room_for_the_hash_is_refused():
    with pytest.raises(ValueError, match="limit must be at least 10"):
        slug("a corgi", 9)
