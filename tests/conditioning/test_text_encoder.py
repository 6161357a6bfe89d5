"""Texts are truncated, padded and pooled as in Stable Diffusion."""

from __future__ import annotations

import pytest
import torch

from amortized.conditioning import CLIPTextEncoder, load_text_encoder
from amortized.conditioning.text_encoder import T5TextEncoder
from tests.tiny_t5 import make_tiny_t5

TEXTS = ["a red cube", "", "a zebra, front view", "q" * 60]


def plain_ids(encoder: CLIPTextEncoder, text: str) -> list[int]:
    """Tokenize by hand without padding, [begin, letters, end]: the tokenizer has no merges."""
    vocab = encoder.tokenizer.get_vocab()
    letters = [vocab[c] for word in text.replace(",", " ,").split() for c in (*word[:-1], word[-1] + "</w>")]
    return [vocab["<|startoftext|>"], *letters[: encoder.max_length - 2], vocab["<|endoftext|>"]]


def test_each_row_equals_the_model_run_on_the_unpadded_text(encoder):
    text = encoder.encode(TEXTS)
    for row, string in enumerate(TEXTS):
        ids = plain_ids(encoder, string)
        expected = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(text.tokens[row, : len(ids)], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text.pooled[row], expected[-1], rtol=1e-4, atol=1e-5)
        assert text.mask[row].tolist() == [i < len(ids) for i in range(encoder.max_length)]
    assert text.pooled.shape == (4, encoder.width)
    assert text.tokens.shape == (4, 48, encoder.width)


def test_pooling_by_the_library_goes_wrong_for_a_small_eos_id(encoder):
    """Why `CLIPTextEncoder` pools by position; once this fails, it can use `pooler_output`."""
    ids, _ = encoder.token_ids(["a zebra", "a cube"])
    library = encoder.model(input_ids=ids).pooler_output
    agrees = torch.allclose(library, encoder.encode(["a zebra", "a cube"]).pooled, atol=1e-5)
    assert agrees == (encoder.model.config.eos_token_id != 2)


def test_pooled_vectors_of_different_texts_differ(encoder):
    pooled = encoder.encode(["a red cube", "a red cone", "a blue cube", ""]).pooled
    assert torch.pdist(pooled).min() > 1e-2


def test_a_text_one_token_too_long_keeps_its_end_token(encoder):
    max_letters = encoder.max_length - 2
    fits, too_long = encoder.encode(["q" * max_letters]), encoder.encode(["q" * (max_letters + 1)])
    # The cut changes the last letter from "q</w>" to "q"; both rows are full, and both end in "end".
    ids, lengths = encoder.token_ids(["q" * max_letters, "q" * (max_letters + 1)])
    assert lengths.tolist() == [encoder.max_length] * 2
    assert (ids[:, -1] == encoder.tokenizer.eos_token_id).all()
    assert (fits.mask == too_long.mask).all()
    assert torch.isfinite(too_long.pooled).all()


def test_a_batch_equals_its_texts_one_by_one(encoder):
    batch = encoder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        single = encoder.encode([text])
        torch.testing.assert_close(single.tokens[0], batch.tokens[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single.pooled[0], batch.pooled[row], rtol=1e-4, atol=1e-5)


def test_the_model_is_frozen_and_builds_no_graph(encoder):
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.encode(["a"]).tokens.requires_grad


def test_a_tokenizer_without_an_end_token_is_refused(encoder):
    class NoEnd:
        model_max_length, bos_token_id, eos_token_id = 48, 1, None

    with pytest.raises(ValueError, match="begin-of-text or end-of-text"):
        CLIPTextEncoder(NoEnd(), encoder.model)


def test_overlong_texts_are_those_that_are_truncated(encoder):
    max_letters = encoder.max_length - 2
    for letters in (max_letters - 1, max_letters, max_letters + 1):
        assert encoder.is_overlong("q" * letters) == (letters > max_letters)


# ---- loading ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    return make_tiny_t5(tmp_path_factory.mktemp("t5"))


def test_a_t5_encodes_each_text_as_if_alone(t5_folder):
    encoder = load_text_encoder(str(t5_folder))
    assert isinstance(encoder, T5TextEncoder) and (encoder.width, encoder.max_length) == (16, 9)
    strings = ["a red cube", "", "a red cube on a blue cube", "a a a a a a a a a a"]
    text = encoder.encode(strings)
    for row, string in enumerate(strings):
        ids = [*encoder.tokenizer(string, add_special_tokens=False)["input_ids"][:8], 1]  # with end token
        alone = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(text.tokens[row, : len(ids)], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text.pooled[row], alone.mean(0), rtol=1e-4, atol=1e-5)
        assert text.tokens[row, len(ids) :].abs().max() == 0 if len(ids) < 9 else True
        assert text.mask[row].tolist() == [i < len(ids) for i in range(9)]
    assert [encoder.is_overlong(string) for string in strings] == [False, False, False, True]


def test_the_text_encoder_of_a_diffusers_folder(encoder_folder, encoder):
    loaded = load_text_encoder(str(encoder_folder))
    assert isinstance(loaded, CLIPTextEncoder)
    assert torch.equal(loaded.encode(TEXTS).tokens, encoder.encode(TEXTS).tokens)


def test_folders_without_a_text_encoder_are_refused(tmp_path, t5_folder):
    import json
    import shutil

    with pytest.raises(ValueError, match="'.*missing' cannot be loaded: .*; give a diffusers folder"):
        load_text_encoder(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_text_encoder(str(tmp_path))
    for number, (name, damage) in enumerate(
        [("model.safetensors", b"cut"), ("config.json", b"{"), ("tokenizer.json", b"{}")]
        + [("tokenizer.json", b"[]"), ("tokenizer_config.json", b"[]")]
    ):
        folder = tmp_path / f"damaged{number}"
        shutil.copytree(t5_folder, folder)
        (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_text_encoder(str(folder))
    shutil.copytree(t5_folder, tmp_path / "wide")
    config = json.loads((tmp_path / "wide/config.json").read_text())
    (tmp_path / "wide/config.json").write_text(json.dumps(config | {"d_model": 24}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_text_encoder(str(tmp_path / "wide"))
    shutil.copytree(t5_folder, tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="its text encoder is a gpt2, not a CLIP or a T5"):
        load_text_encoder(str(tmp_path / "other"))
