"""Sentences => TextCondition, with the text encoder that a diffusion model was trained with, or another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from amortized.transfer import to_device
from amortized.types import TextCondition

# What transformers raises for a model that is missing, incomplete, damaged or of another make.
UNREADABLE = (
    OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError, SafetensorError,
)  # fmt: skip


class TextEncoder:
    """A CLIP-style causal tokenizer and text model, read as Stable Diffusion reads them.

    The sentence vector is taken at the end-of-text token by position. The pooled output of
    `transformers` is not used: where a config says `eos_token_id == 2` it pools at the *largest*
    token id, which for a small vocabulary is any word of the sentence.
    """

    def __init__(self, tokenizer: Any, model: Any, name: str = "") -> None:
        """`tokenizer`: a Hugging Face tokenizer; `model`: a CLIPTextModel, frozen here."""
        self.tokenizer, self.name = tokenizer, name
        self.model = model.eval().requires_grad_(False)
        self.max_length: int = min(int(tokenizer.model_max_length), model.config.max_position_embeddings)
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ValueError(
                "the text encoder's tokenizer has no begin-of-text or end-of-text token; "
                "use a CLIP-style tokenizer, which defines both"
            )

    @property
    def width(self) -> int:
        """D, the width of `pooled` and `tokens`."""
        return self.model.config.hidden_size

    @property
    def batch_size(self) -> int:
        """How many sentences to ask for at once."""
        return _batch_size(self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextCondition:
        """N sentences => a condition of N rows, float32, on the model's device; "" is a sentence.

        Every row is [begin, words, end, padding] of length L. A sentence of more than L - 2 tokens
        keeps its first L - 2 *and* its end token, where naive slicing to L loses the end token and
        with it the pooled vector.
        """
        ids, lengths = self._token_ids(texts)
        device = next(self.model.parameters()).device
        ids, lengths = to_device((ids, lengths), device)
        # No attention mask, as diffusers calls it: the model is causal, so words never see padding.
        tokens = self.model(input_ids=ids).last_hidden_state.float()  # [N, L, D] after the final layer norm
        rows = torch.arange(len(texts), device=device)
        positions = torch.arange(self.max_length, device=device)
        return TextCondition(
            pooled=tokens[rows, lengths - 1], tokens=tokens, mask=positions[None] < lengths[:, None]
        )

    def is_overlong(self, text: str) -> bool:
        """Whether `encode` cuts the sentence."""
        return len(_words(self.tokenizer, text)) > self.max_length - 2

    def fingerprint(self) -> str:
        """Its precision, and a digest of its weights and words."""
        return _fingerprint(self.tokenizer, self.model)

    def _token_ids(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [N, L] long and the count of tokens [N], begin and end included."""
        tokenizer, room = self.tokenizer, self.max_length - 2
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids = torch.full((len(texts), self.max_length), padding, dtype=torch.long)
        lengths = torch.empty(len(texts), dtype=torch.long)
        for row, text in enumerate(texts):
            words = _words(self.tokenizer, text)
            sentence = [tokenizer.bos_token_id, *words[:room], tokenizer.eos_token_id]
            ids[row, : len(sentence)] = torch.tensor(sentence)
            lengths[row] = len(sentence)
        return ids, lengths


class T5TextEncoder:
    """A T5 encoder: what a generator may read in place of the prior's words.

    It has no vector for the sentence: `pooled` is the mean over its tokens. Padding is masked, and zero.
    """

    MAX_LENGTH = 128  # T5 knows no limit of its own

    def __init__(self, tokenizer: Any, model: Any, name: str = "") -> None:
        """`tokenizer`: a Hugging Face tokenizer; `model`: a T5EncoderModel, frozen here."""
        self.tokenizer, self.name = tokenizer, name
        self.model = model.eval().requires_grad_(False)
        self.max_length = min(int(tokenizer.model_max_length), self.MAX_LENGTH)
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError("the text encoder's tokenizer has no end-of-text or padding token, as T5's has")

    @property
    def width(self) -> int:
        """D, the width of `pooled` and `tokens`."""
        return self.model.config.d_model

    @property
    def batch_size(self) -> int:
        """How many sentences to ask for at once."""
        return _batch_size(self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextCondition:
        """N sentences => a condition of N rows [words, end, padding], float32; longer ones keep their end."""
        ids = torch.full((len(texts), self.max_length), self.tokenizer.pad_token_id, dtype=torch.long)
        lengths = torch.empty(len(texts), dtype=torch.long)
        for row, text in enumerate(texts):
            words = _words(self.tokenizer, text)
            sentence = [*words[: self.max_length - 1], self.tokenizer.eos_token_id]
            ids[row, : len(sentence)] = torch.tensor(sentence)
            lengths[row] = len(sentence)
        device = next(self.model.parameters()).device
        mask = torch.arange(self.max_length)[None] < lengths[:, None]
        ids, mask = to_device((ids, mask), device)
        tokens = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        tokens = tokens * mask[..., None]
        return TextCondition(pooled=tokens.sum(1) / mask.sum(1, keepdim=True), tokens=tokens, mask=mask)

    def is_overlong(self, text: str) -> bool:
        """Whether `encode` cuts the sentence."""
        return len(_words(self.tokenizer, text)) > self.max_length - 1

    def fingerprint(self) -> str:
        """Its precision, and a digest of its weights and words."""
        return _fingerprint(self.tokenizer, self.model)


def _batch_size(model: Any) -> int:
    """On a GPU a few sentences take no longer than one; on a CPU padding to a full batch would only cost."""
    return 8 if next(model.parameters()).device.type == "cuda" else 1


def _words(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a sentence, without begin and end."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _fingerprint(tokenizer: Any, model: Any) -> str:
    state = hashlib.blake2b(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode(), digest_size=8)
    for parameter in model.parameters():
        state.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"{str(model.dtype).removeprefix('torch.')} {state.hexdigest()}"


def load_text_encoder(
    path: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    allow_network: bool = False,
) -> TextEncoder | T5TextEncoder:
    """The text encoder of a diffusers folder, or a CLIP or T5 of transformers; a Hub id where it is cached or
    may be fetched. Only safetensors are read. Raises ValueError for anything else.
    """
    try:
        return read_text_encoder(
            path, revision=revision, dtype=dtype, device=device, allow_network=allow_network
        )
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"the text encoder '{path}' cannot be loaded: {reason_of(error)}; give a diffusers folder, one "
            "of a CLIP or T5 with its tokenizer and weights as .safetensors, or a Hub id that may be fetched"
        ) from error


def read_text_encoder(
    path: str, *, revision: str | None, dtype: torch.dtype, device: torch.device | str, allow_network: bool
) -> TextEncoder | T5TextEncoder:
    """The same, for who has more to say of a folder: raises one of UNREADABLE."""
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a line on stderr for every model, however small
    classes = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
    source: dict[str, Any] = {"revision": revision, "local_files_only": not allow_network}
    model_in, words_in = _parts(path, source)
    kind = AutoConfig.from_pretrained(path, **model_in, **source).model_type
    if kind not in classes:
        raise ValueError(f"its text encoder is a {kind}, not a CLIP or a T5")
    tokenizer = AutoTokenizer.from_pretrained(path, **words_in, **source)
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_ids)):
        # transformers makes such a tokenizer, without a word, of a folder that lacks the vocabulary.
        raise ValueError("its tokenizer has no vocabulary")
    model = classes[kind].from_pretrained(path, use_safetensors=True, dtype=dtype, **model_in, **source)
    name = path if revision is None else f"{path} at {revision}"
    return (T5TextEncoder if kind == "t5" else TextEncoder)(tokenizer, model.to(device), name)


def reason_of(error: Exception) -> str:
    """The first line of what a library says."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _parts(path: str, source: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Where model and tokenizer lie: in a diffusers folder's parts, or together."""
    from transformers.utils import cached_file

    if Path(path).is_dir():
        apart = (Path(path) / "text_encoder").is_dir()
    else:
        there: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
        there |= {"_raise_exceptions_for_connection_errors": False, "_raise_exceptions_for_gated_repo": False}
        try:
            apart = cached_file(path, "text_encoder/config.json", **there, **source) is not None
        except OSError:
            apart = False
    return ({"subfolder": "text_encoder"}, {"subfolder": "tokenizer"}) if apart else ({}, {})
