"""A prompt that is too long is cut before the words for its view, everywhere by the same rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amortized.cameras import orbit
from amortized.conditioning import ShardStore, TextBank, ViewTextConfig, load_text_encoder
from amortized.conditioning.cached_encoder import CachedTextEncoder
from amortized.conditioning.fitting import fit, num_overlong, unknown_words
from amortized.files import PROJECT
from tests.conditioning.encoding import PARTS, VIEWS, encoded
from tests.conditioning.letter_encoder import LENGTH, LetterEncoder, ListCorpus

SHAPES = str(PROJECT / "checkpoints/shapes-prior")


class CharacterEncoder(LetterEncoder):
    """One token for each character."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def is_overlong(self, text: str) -> bool:
        return len(text) > self.room


WORDS = st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=12).map(" ".join)


@given(WORDS, st.sampled_from(["", ", front view", ", b"]), st.integers(1, 40))
def test_the_longest_start_of_the_prompt_stays(prompt: str, suffix: str, room: int) -> None:
    """Against trying every number of words, from the largest."""
    encoder = CharacterEncoder(room)
    text = fit(encoder, prompt, suffix)
    assert text.endswith(suffix)
    if not suffix or len(prompt + suffix) <= room:
        assert text == prompt + suffix
        return
    words = prompt.split()
    if len(words) > 1:
        starts = [" ".join(words[:number]) for number in range(len(words) - 1, -1, -1)]
    else:
        starts = [prompt[:number] for number in range(len(prompt) - 1, -1, -1)]
    assert text == next((s for s in starts if len(s + suffix) <= room), "") + suffix


@pytest.mark.parametrize(("perp_neg", "step_deg"), [(False, 0), (False, 10), (True, 0)])
def test_views_of_a_long_prompt_stay_different(perp_neg: bool, step_deg: int) -> None:
    """With the embedded prior's tokenizer, of 22 words: front, side and back were one text before."""
    encoder = load_text_encoder(SHAPES)
    long = " on top of ".join(["a large red cube on top of a small blue sphere"] * 3)
    bank = TextBank(encoder, ViewTextConfig(perp_neg=perp_neg, direction_step_deg=step_deg))
    text = bank.prior_text([long, "a red cube"], orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40))
    for rows in (text.positive.pooled[:4], text.positive.pooled[4:]):
        distances = torch.cdist(rows, rows)
        distinct = [(0, 1), (0, 2), (1, 2)]
        assert min(float(distances[pair]) for pair in distinct) > 1e-2
    [note] = bank.notes_on([long, "a red cube"])
    assert note.startswith("1 of 2 prompts is longer with the words for a view than the 24 tokens")
    assert num_overlong(encoder, [long, "a red cube"]) == 1


def test_shards_and_encoder_cut_the_same(tmp_path: Path) -> None:
    texts = ["one two three four five six seven", "one two", "one two three four"]
    store = ShardStore(str(encoded(tmp_path, ListCorpus(texts), dtype="float32")))
    keys = [(text, suffix) for text in texts for suffix in ("", *VIEWS)]
    encoder = LetterEncoder()
    stored = CachedTextEncoder(encoder, [store])
    encoder.calls.clear()
    rows, expected = stored.encode(keys), CachedTextEncoder(LetterEncoder()).encode(keys)
    assert encoder.calls == []  # all came from the shards
    assert all(torch.equal(getattr(rows, part), getattr(expected, part)) for part in PARTS)
    cut = fit(encoder, texts[0], VIEWS[0])
    assert cut == "one two three" + VIEWS[0] and len(cut.split()) == LENGTH - 2
    assert torch.equal(rows.pooled[1], encoder.encode([cut]).pooled[0])


def test_views_that_leave_no_room_are_refused() -> None:
    suffixes = (", front", ", side", ", back " * 20, ", above")
    with pytest.raises(ValueError, match="suffixes: ', back , back.*leaves no room .* 24 tokens"):
        TextBank(load_text_encoder(SHAPES), ViewTextConfig(suffixes=suffixes)).check_suffixes()
    TextBank(load_text_encoder(SHAPES), ViewTextConfig(direction_step_deg=10)).check_suffixes()


# ---- unknown words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["corgi", "wearing", "hat", "dragon", "castle", "wooden", "photograph", "猫", "größer"]
)
def test_words_outside_of_a_small_vocabulary_are_unknown(word: str) -> None:
    encoder = load_text_encoder(SHAPES)
    assert unknown_words(encoder, ["a red cube", f"a {word} on a red cube", f"{word} {word}"]) == {word: 2}
    assert (
        unknown_words(encoder, ["a large red cube on top of a small blue sphere, front view az330 el-10"])
        == {}
    )


def test_every_prompt_of_the_embedded_corpora_is_known() -> None:
    from corpora import open_corpus

    corpus, encoder = open_corpus("shapes100k"), load_text_encoder(SHAPES)
    assert unknown_words(encoder, (corpus[i].text for i in range(0, len(corpus), 100))) == {}


def test_clip_knows_english() -> None:
    """The vocabulary of OpenAI's CLIP, which open_clip ships, knows the animals of AT2520 and rare words."""
    from open_clip.tokenizer import SimpleTokenizer

    from corpora import open_corpus

    tokenizer = SimpleTokenizer()

    class Clip(LetterEncoder):
        def num_pieces(self, word: str) -> int:
            return len(tokenizer.encode(word))

    corpus = open_corpus("at2520")
    assert unknown_words(Clip(), (corpus[i].text for i in range(len(corpus)))) == {}
    rare = ["a xylophone, a shiba inu and a chrysanthemum", "an ornithopter in a katsu-don, steampunk"]
    assert unknown_words(Clip(), rare) == {} and set(unknown_words(Clip(), ["кошка"])) == {"кошка"}


def test_the_note_names_the_words() -> None:
    bank = TextBank(load_text_encoder(SHAPES))
    assert bank.notes_on(["a red cube"]) == []
    [note] = bank.notes_on(["a corgi wearing a hat"])
    assert note == "the prior's text encoder does not know 3 words of 1 prompt: corgi, hat, wearing"
    [note] = bank.notes_on(["a corgi", "a red cube"], sampled=True)
    assert note == "the prior's text encoder does not know 1 word of 2 sampled prompts: corgi"
