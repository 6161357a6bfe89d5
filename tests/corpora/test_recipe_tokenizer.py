"""The tokenizer of the embedded models."""

import itertools

import pytest
import torch
from transformers import CLIPTokenizer

from amortized.cameras import VIEW_NAMES
from amortized.conditioning import ViewTextConfig
from corpora import open_corpus
from corpora.shapes.grammar import (
    COLORS,
    MARK,
    NUM_PAIRS,
    RELATIONS,
    SHAPES,
    SIZES,
    marked,
    pair,
    sentence,
    singles,
    under_specified,
)
from corpora.shapes.recipe import prior
from corpora.shapes.recipe.tokenizer import BOS, CONTEXT_LENGTH, EOS, build_tokenizer, words

SUFFIXES = ViewTextConfig().suffixes


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def tokens(tokenizer, text: str) -> list[str]:
    first, *inner, last = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    assert (first, last) == (BOS, EOS)
    return inner


def test_words_cover_the_grammar():
    phrases = [*SHAPES, *COLORS, *SIZES, *RELATIONS, MARK, *VIEW_NAMES, "a an the something view"]
    assert set(words()) >= set(" ".join(phrases).split())
    assert len(words()) == len(set(words()))


def test_every_word_is_one_token(tokenizer):
    assert [tokens(tokenizer, word) for word in words()] == [[f"{word}</w>"] for word in words()]
    assert tokens(tokenizer, " ".join(words()[:20])) == [f"{word}</w>" for word in words()[:20]]


def test_directions_are_one_token_each(tmp_path):
    words = ["az330", "az30", "el-10", "el10"]
    build_tokenizer(words).save_pretrained(tmp_path)
    for tokenizer in (build_tokenizer(words), CLIPTokenizer.from_pretrained(tmp_path)):
        pieces = tokens(tokenizer, "a cube, front view az30 el-10")
        assert pieces == [*(f"{word}</w>" for word in ["a", "cube", ",", "front", "view"]), "az30", "el-10"]
        assert tokenizer.eos_token_id == len(tokenizer) - 1  # EOS still has the largest id
        assert "az330" not in tokens(tokenizer, "baz330")


def test_direction_embeddings_start_from_fourier_features():
    tokenizer = prior.build_prior_tokenizer()
    text_encoder = prior.build_text_encoder(tokenizer)
    prior.init_direction_embeddings(text_encoder, tokenizer)
    ids = tokenizer.convert_tokens_to_ids([f"az{azimuth}" for azimuth in range(0, 360, 10)])
    rows = text_encoder.get_input_embeddings().weight[ids].detach().double()
    # Rows are linear in the 17 Fourier features up to the eighth harmonic: they have rank 17, and a rotation
    # by 10 degrees is a linear map.
    assert torch.linalg.matrix_rank(rows, rtol=1e-4) == 17
    rotation = torch.linalg.lstsq(rows, rows.roll(-1, 0), driver="gelsd").solution
    torch.testing.assert_close(rows @ rotation, rows.roll(-1, 0), rtol=1e-4, atol=1e-5)
    # The other words keep their random embeddings.
    assert text_encoder.get_input_embeddings().weight[: min(ids)].std().item() == pytest.approx(
        0.02, rel=0.05
    )


def test_sentences_tokenize_into_words_and_commas(tokenizer):
    every = [*singles(), *marked(), *under_specified(), *map(pair, range(0, NUM_PAIRS, 1999))]
    for description, suffix in zip(every, itertools.cycle(SUFFIXES), strict=False):
        text = sentence(description) + suffix
        assert tokens(tokenizer, text) == [f"{word}</w>" for word in text.replace(",", " ,").split()]


def test_unknown_words_split_into_known_pieces(tokenizer):
    assert tokens(tokenizer, "zzz") == ["z", "z", "z</w>"]
    for text in ("a corgi, 35 mm", "don't!", "~ `x` {y}"):
        pieces = tokens(tokenizer, text)
        assert "".join(pieces).replace("</w>", "") == text.replace(" ", "")
        assert EOS not in pieces


def test_eos_is_the_last_id_and_the_padding(tokenizer):
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == max(tokenizer.get_vocab().values())
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    batch = tokenizer(["a red cube", ""], **settings).input_ids
    assert batch.shape == (2, CONTEXT_LENGTH)
    assert (batch[0, 4:] == tokenizer.eos_token_id).all() and (batch[1, 1:] == tokenizer.eos_token_id).all()
    # Pooling at the largest id and at the first EOS pick the same position.
    assert batch.argmax(-1).tolist() == [4, 1]


def test_no_sentence_is_truncated(tokenizer):
    longest = max((sentence(pair(i)) for i in range(NUM_PAIRS)), key=lambda text: len(text.split()))
    for text in (longest, max((sentence(d) for d in marked()), key=lambda text: len(text.split()))):
        for suffix in SUFFIXES:
            assert len(tokenizer(text + suffix).input_ids) <= CONTEXT_LENGTH


def test_a_loaded_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a small red cube next to an orange torus, back view", "something pink", "", "zebra's 1,5"]
    settings = {"padding": "max_length", "truncation": True}
    assert loaded(texts, **settings).input_ids == tokenizer(texts, **settings).input_ids
    assert loaded.model_max_length == CONTEXT_LENGTH


def test_the_tokenizer_has_a_token_for_every_word_of_the_corpora(tokenizer):
    vocabulary = {f"{word}</w>" for word in words()}
    for name in ("shapes16", "shapes-comp"):
        corpus = open_corpus(name)
        texts = [corpus[index].text for index in range(len(corpus))]
        assert {piece for text in texts for piece in tokens(tokenizer, text)} <= vocabulary
