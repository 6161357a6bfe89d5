"""Tokens that textual inversion (arXiv 2208.01618) learned, added to a text encoder and its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.model_folders.weights import FLOATS, TensorHeader, check_format, headers_of, is_finite
from amortized.untrusted import short

UNNAMED = "emb_params"  # the name of the tensor in files of AUTOMATIC1111, whose word is the file's name
MOST_VECTORS = 75  # of one token; a text of CLIP has no more


@dataclass(frozen=True)
class NewToken:
    """A token, and the header of its vectors [D] or [n, D]."""

    token: str
    vectors: TensorHeader


def read_new_token(file: Path) -> NewToken:
    """Read all of a file of textual inversion but the values. Raises ValueError if it is not one."""
    check_format(file)
    tensors = headers_of([file], short(file)).tensors
    if len(tensors) != 1:
        raise ValueError(
            f"{short(file)} has {len(tensors)} tensors, but the file of a token has one: its vectors, of one "
            "text encoder"
        )
    (name, header), *_ = tensors.items()
    token = file.stem if name == UNNAMED else name
    if not token.isprintable() or token != token.strip() or not 1 <= len(token) <= 100 or " " in token:
        raise ValueError(f"{short(file)}: {short(repr(token))} cannot be a token: rename it to one word")
    if header.dtype not in FLOATS or not 1 <= len(header.shape) <= 2:
        raise ValueError(
            f"{short(file)}: the vectors are {header.dtype} {list(header.shape)}, not [n, width]"
        )
    if len(header.shape) == 2 and not 1 <= header.shape[0] <= MOST_VECTORS:
        raise ValueError(f"{short(file)}: '{token}' has {header.shape[0]} vectors, not 1 to {MOST_VECTORS}")
    return NewToken(token, header)


def add_new_token(new: NewToken, tokenizer: Any, model: Any) -> dict[int, list[int]]:
    """Add a token to a tokenizer and a CLIPTextModel; its further vectors are TOKEN_1, TOKEN_2, ...

    Returns the ids that the token's id stands for in a text. Raises ValueError if its width does not fit, or
    it is in the vocabulary.
    """
    import torch
    from safetensors import safe_open

    embedding = model.get_input_embeddings()
    file, width = new.vectors.file, embedding.weight.shape[1]
    if new.vectors.shape[-1] != width:
        raise ValueError(
            f"{short(file)}: '{new.token}' has vectors of width {new.vectors.shape[-1]}, but this prior's "
            f"text encoder has {width}: it was trained for another model"
        )
    with safe_open(file, "pt") as tensors:
        vectors = new.vectors.read(tensors).reshape(-1, width).to(embedding.weight)
    if not is_finite(vectors):
        raise ValueError(f"{short(file)}: '{new.token}' has values that are not finite in {vectors.dtype}")
    names = [new.token, *(f"{new.token}_{index}" for index in range(1, len(vectors)))]
    vocabulary = tokenizer.get_vocab()
    if taken := [name for name in names if name in vocabulary]:
        raise ValueError(
            f"{short(file)}: '{taken[0]}' is in the vocabulary already: rename the token, or give it once"
        )
    tokenizer.add_tokens(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    weight = embedding.weight.new_zeros(max(embedding.num_embeddings, max(ids) + 1), width)
    weight[: embedding.num_embeddings] = embedding.weight.detach()
    weight[ids] = vectors
    embedding.weight = torch.nn.Parameter(weight, requires_grad=False)
    embedding.num_embeddings = model.config.vocab_size = len(weight)
    return {ids[0]: ids}
