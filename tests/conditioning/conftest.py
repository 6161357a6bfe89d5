"""Text encoders with random weights, for both conventions of the end-of-text id in transformers configs."""

from __future__ import annotations

import pytest

from amortized.conditioning import CLIPTextEncoder
from tests.tiny_sd import make_tiny_sd


@pytest.fixture(scope="session", params=[False, True], ids=["eos largest", "eos 2"])
def encoder_folder(request, tmp_path_factory):
    return make_tiny_sd(tmp_path_factory.mktemp("tiny-sd"), legacy_eos=request.param)


@pytest.fixture
def encoder(encoder_folder) -> CLIPTextEncoder:
    from transformers import CLIPTextModel, CLIPTokenizer

    return CLIPTextEncoder(
        CLIPTokenizer.from_pretrained(encoder_folder, subfolder="tokenizer"),
        CLIPTextModel.from_pretrained(encoder_folder, subfolder="text_encoder"),
    )
