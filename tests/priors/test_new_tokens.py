"""Tokens of textual inversion are those that diffusers adds, and prompts with them give its embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amortized.conditioning import load_text_encoder
from amortized.model_folders import read_additions
from amortized.priors import PriorConfig, fingerprint_of, load_prior
from tests.priors.test_lora import pipeline


def vectors(count: int | None, seed: int = 0) -> torch.Tensor:
    shape = (32,) if count is None else (count, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_tokens(folder: Path, *files: Path, **changes):
    return load_prior(PriorConfig(path=str(folder), tokens=tuple(map(str, files)), **changes))


@pytest.mark.parametrize("count", [None, 1, 2, 5])
def test_embeddings_equal_those_of_diffusers(folder, tmp_path, count) -> None:
    save_file({"<cat>": vectors(count)}, one := tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": vectors(2, seed=1)}, two := tmp_path / "ugly-3.safetensors")  # AUTOMATIC1111's
    encoder, pipe = with_tokens(folder, one, two).text_encoder, pipeline(folder)
    pipe.load_textual_inversion(str(one))
    pipe.load_textual_inversion({"emb_params": vectors(2, seed=1)}, token="ugly-3")
    for text in ("a <cat> on a cube", "<cat>", "red,<cat>.", "an ugly-3 ball, <cat> <cat>", "a cat", ""):
        converted = pipe.maybe_convert_prompt(text, pipe.tokenizer)
        ids = pipe.tokenizer(converted, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = pipe.text_encoder(ids)[0]
        torch.testing.assert_close(encoder.encode([text]).tokens, expected)
    assert encoder.num_pieces("<cat>") == (count or 1) and encoder.num_pieces("ugly-3") == 2
    assert encoder.is_overlong("<cat> " * 12) == ((count or 1) * 12 > 46)


def test_words_and_vectors_are_part_of_the_identity(folder, tmp_path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file, word, seed in zip(files, ("<x>", "<y>", "<x>"), (0, 0, 1), strict=True):
        save_file({word: vectors(2, seed)}, file)
    priors = [load_prior(PriorConfig(path=str(folder))), *(with_tokens(folder, file) for file in files)]
    assert len({fingerprint_of(prior) for prior in priors}) == 4
    assert len({prior.text_encoder.fingerprint() for prior in priors}) == 4
    again = load_text_encoder(str(folder), additions=read_additions(tokens=[str(files[0])]))
    assert again.fingerprint() == priors[1].text_encoder.fingerprint()
    assert torch.equal(again.encode(["a <x>"]).tokens, priors[1].text_encoder.encode(["a <x>"]).tokens)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has 0 tensors"),
        ({"clip_l": vectors(2), "clip_g": vectors(2)}, "has 2 tensors"),
        ({"<cat>": torch.ones(2, 16)}, "vectors of width 16, but this prior's text encoder has 32"),
        ({"<cat>": torch.ones(0, 32)}, "has 0 vectors"),
        ({"<cat>": torch.ones(76, 32)}, "has 76 vectors"),
        ({"<cat>": torch.ones(1, 1, 32)}, "not .n, width."),
        ({"<cat>": torch.ones(())}, "not .n, width."),
        ({"<cat>": torch.ones(2, 32, dtype=torch.int64)}, "vectors are I64"),
        ({"<cat>": torch.full((2, 32), torch.inf)}, "not finite"),
        ({"a cat": torch.ones(2, 32)}, "cannot be a token"),
        ({"": torch.ones(2, 32)}, "cannot be a token"),
        ({"a</w>": torch.ones(2, 32)}, "'a</w>' is in the vocabulary already"),
    ],
)
def test_other_files_are_refused_in_one_sentence(folder, tmp_path, tensors, message) -> None:
    save_file(tensors, file := tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        with_tokens(folder, file)
    assert "\n" not in str(caught.value) and "diffusers folder" not in str(caught.value)


def test_a_token_is_given_once(folder, tmp_path) -> None:
    save_file({"<cat>": vectors(2)}, file := tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="'<cat>' is in the vocabulary already"):
        with_tokens(folder, file, file)
