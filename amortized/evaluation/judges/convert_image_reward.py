"""Convert ImageReward's published file, a state dict with BLIP's names, to a folder that the judge loads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from amortized.evaluation.judges.image_reward import (
    CONFIG,
    KIND,
    WEIGHTS,
    ImageRewardConfig,
    ImageRewardNetwork,
)
from amortized.tensor_files import read_tensor_file
from amortized.untrusted import MiB, read_text, short

# Published names to ours, tried in order. Between the layers of the head is dropout, which has no weights.
NAMES = (
    (r"blip\.visual_encoder\.cls_token", r"vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", r"vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(\w+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm(\d)\.(\w+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(\w+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(\w+)",
        r"vision.encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.(.+)", r"vision.encoder.layers.\1.mlp.\2"),
    (r"blip\.visual_encoder\.norm\.(\w+)", r"vision.post_layernorm.\1"),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
)
# The projections of BLIP's contrastive loss, and a counter.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
HEAD = re.compile(r"mlp\.layers\.(\d+)\.(\w+)")
SPECIAL = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
ADDED = ["[DEC]", "[ENC]"]  # BLIP's, which ImageReward has embeddings for and does not use


def renamed(names: Iterable[str]) -> dict[str, str]:
    """Our name of each published one; without those that are not used, and with unknown ones as they are."""
    names = [name for name in names if not name.startswith(UNUSED)]
    layers = sorted({int(match[1]) for name in names if (match := HEAD.fullmatch(name))})
    ours: dict[str, str] = {}
    for name in names:
        if match := HEAD.fullmatch(name):
            ours[name] = f"head.{layers.index(int(match[1]))}.{match[2]}"
            continue
        found = (re.sub(pattern, new, name) for pattern, new in NAMES if re.fullmatch(pattern, name))
        ours[name] = next(found, name)
    return ours


def convert(
    file: Path, folder: Path, vocabulary: Path, config: ImageRewardConfig | None = None
) -> dict[str, Any]:
    """Write the folder of a judge from the published file and BERT's vocabulary; returns its config.

    Raises ValueError if the folder exists, or a file is damaged or of another model.
    """
    if folder.exists():
        raise ValueError(f"{short(folder)} exists: choose another folder")
    config = config or ImageRewardConfig()
    tokenizer = _tokenizer(vocabulary, config.vocabulary)
    state, _ = read_tensor_file(file)
    ours = {new: state[old].float().contiguous() for old, new in renamed(state).items()}
    _check(file, ours, config)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    data = {"model_type": KIND, **asdict(config), "source": {"file": file.name, "sha256": digest}}
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    save_file(ours, folder / f"{WEIGHTS}.safetensors")
    # Last: a folder without it is not loaded, so an interrupted conversion is never mistaken for one.
    (folder / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return data


def _check(file: Path, state: Mapping[str, Tensor], config: ImageRewardConfig) -> None:
    """Raise ValueError unless the weights are exactly those of the network."""
    with torch.device("meta"):
        expected = ImageRewardNetwork(config).state_dict()
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"{short(file)} is not ImageReward: {short(wrong[0])} is missing, unexpected, or of another "
            f"shape ({len(wrong)} tensors of {len(expected)} do not fit)"
        )


def _tokenizer(file: Path, size: int) -> Any:
    """BERT's tokenizer, from its vocabulary, with BLIP's two tokens. Raises ValueError."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = read_text(file, 4 * MiB).removesuffix("\n").split("\n")
    vocabulary = {word: number for number, word in enumerate(words)}
    if len(vocabulary) < len(words) or not vocabulary.keys() >= {*SPECIAL.values(), "[MASK]"}:
        raise ValueError(f"{short(file)} is not BERT's vocabulary: use the vocab.txt of bert-base-uncased")
    if len(words) + len(ADDED) != size:
        raise ValueError(
            f"{short(file)} has {len(words):,} tokens, and {size - len(ADDED):,} are needed: use the "
            "vocab.txt of bert-base-uncased"
        )
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(ADDED)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **SPECIAL)
