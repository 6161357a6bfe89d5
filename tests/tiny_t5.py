"""A tiny T5 encoder in the folder format of transformers."""

from __future__ import annotations

from pathlib import Path

import torch


def make_tiny_t5(folder: Path, *, width: int = 16) -> Path:
    """A T5 encoder with random weights, and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "a", "red", "cube", "on", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=9
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=8, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(folder)
    return folder
