"""Text encoders: CLIP as Stable Diffusion uses it, and T5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from amortized.files import in_project
from amortized.network import network_on_request
from amortized.transfer import to_device
from amortized.types import TextCondition

# What transformers raises for a model that is missing, incomplete, damaged or of another architecture.
LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
)


class TextEncoder(Protocol):
    """The part of a text encoder that `CachedTextEncoder` uses."""

    name: str  # the encoder's name in messages: its folder or Hub id, and the revision

    @property
    def batch_size(self) -> int:
        """Texts per forward pass."""
        ...

    def encode(self, texts: Sequence[str]) -> TextCondition:
        """Encode N texts to a condition of N rows."""
        ...

    def fingerprint(self) -> str:
        """Return precision and a digest of weights and vocabulary: "float32 0123456789abcdef"."""
        ...


class CLIPTextEncoder:
    """A CLIP tokenizer and causal text model, used as in Stable Diffusion.

    The pooled vector is taken at the position of the end-of-text token. The `pooler_output` of transformers
    is not used: if a config has `eos_token_id == 2`, it pools at the *largest* token id, which in a small
    vocabulary is any word of the text.
    """

    def __init__(self, tokenizer: Any, model: Any, name: str = "") -> None:
        """Wrap a Hugging Face tokenizer and a CLIPTextModel, which is frozen."""
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
        """Texts per forward pass."""
        return _batch_size(self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextCondition:
        """Encode N texts to a condition of N rows, float32, on the model's device; "" is a valid text.

        Every row is [begin, words, end, padding] of length L. A text of more than L - 2 tokens keeps its
        first L - 2 *and* the end token: slicing to L would lose the end token, and with it the pooled vector.
        """
        ids, lengths = self._token_ids(texts)
        device = next(self.model.parameters()).device
        ids, lengths = to_device((ids, lengths), device)
        # No attention mask, as in diffusers: the model is causal, so words never attend to padding.
        tokens = self.model(input_ids=ids).last_hidden_state.float()  # [N, L, D] after the final layer norm
        rows = torch.arange(len(texts), device=device)
        positions = torch.arange(self.max_length, device=device)
        return TextCondition(
            pooled=tokens[rows, lengths - 1], tokens=tokens, mask=positions[None] < lengths[:, None]
        )

    def is_overlong(self, text: str) -> bool:
        """Return whether `encode` truncates the text."""
        return len(_word_ids(self.tokenizer, text)) > self.max_length - 2

    def fingerprint(self) -> str:
        """Return precision and a digest of weights and vocabulary: "float32 0123456789abcdef"."""
        return _fingerprint(self.tokenizer, self.model)

    def _token_ids(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids [N, L] (long) and token counts [N], begin and end included."""
        tokenizer, max_words = self.tokenizer, self.max_length - 2
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids = torch.full((len(texts), self.max_length), padding, dtype=torch.long)
        lengths = torch.empty(len(texts), dtype=torch.long)
        for row, text in enumerate(texts):
            words = _word_ids(tokenizer, text)
            sequence = [tokenizer.bos_token_id, *words[:max_words], tokenizer.eos_token_id]
            ids[row, : len(sequence)] = torch.tensor(sequence)
            lengths[row] = len(sequence)
        return ids, lengths


class T5TextEncoder:
    """A T5 encoder, as an alternative text encoder for the generator.

    T5 has no pooled output: `pooled` is the mean over the tokens. Padding is masked and zero.
    """

    MAX_LENGTH = 128  # T5's relative positions set no limit

    def __init__(self, tokenizer: Any, model: Any, name: str = "") -> None:
        """Wrap a Hugging Face tokenizer and a T5EncoderModel, which is frozen."""
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
        """Texts per forward pass."""
        return _batch_size(self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextCondition:
        """Encode N texts to N rows [words, end, padding] in float32; truncated texts keep the end token."""
        ids = torch.full((len(texts), self.max_length), self.tokenizer.pad_token_id, dtype=torch.long)
        lengths = torch.empty(len(texts), dtype=torch.long)
        for row, text in enumerate(texts):
            words = _word_ids(self.tokenizer, text)
            sequence = [*words[: self.max_length - 1], self.tokenizer.eos_token_id]
            ids[row, : len(sequence)] = torch.tensor(sequence)
            lengths[row] = len(sequence)
        device = next(self.model.parameters()).device
        mask = torch.arange(self.max_length)[None] < lengths[:, None]
        ids, mask = to_device((ids, mask), device)
        tokens = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        tokens = tokens * mask[..., None]
        return TextCondition(pooled=tokens.sum(1) / mask.sum(1, keepdim=True), tokens=tokens, mask=mask)

    def is_overlong(self, text: str) -> bool:
        """Return whether `encode` truncates the text."""
        return len(_word_ids(self.tokenizer, text)) > self.max_length - 1

    def fingerprint(self) -> str:
        """Return precision and a digest of weights and vocabulary: "float32 0123456789abcdef"."""
        return _fingerprint(self.tokenizer, self.model)


def _batch_size(model: Any) -> int:
    """On a GPU, a few texts take as long as one. On a CPU, padding to a full batch would only cost time."""
    return 8 if next(model.parameters()).device.type == "cuda" else 1


def _word_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a text, without begin and end tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _fingerprint(tokenizer: Any, model: Any) -> str:
    digest = hashlib.blake2b(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode(), digest_size=8)
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"{str(model.dtype).removeprefix('torch.')} {digest.hexdigest()}"


@network_on_request
def load_text_encoder(
    path: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    allow_network: bool = False,
) -> CLIPTextEncoder | T5TextEncoder:
    """Load the text encoder of a diffusers folder, or a CLIP or T5 in the format of transformers.

    `path` is a folder, or a Hub id that is cached or may be downloaded. Only safetensors weights are read.
    Raises ValueError if it cannot be loaded.
    """
    try:
        return read_text_encoder(
            in_project(path), revision=revision, dtype=dtype, device=device, allow_network=allow_network
        )
    except torch.OutOfMemoryError:
        raise
    except LOAD_ERRORS as error:
        raise ValueError(
            f"the text encoder '{path}' cannot be loaded: {first_line(error)}; give a diffusers folder, "
            "a CLIP or T5 folder with a tokenizer and .safetensors weights, or a Hub id"
        ) from error


def read_text_encoder(
    path: str, *, revision: str | None, dtype: torch.dtype, device: torch.device | str, allow_network: bool
) -> CLIPTextEncoder | T5TextEncoder:
    """Like `load_text_encoder`, but raise one of LOAD_ERRORS, for callers with a better message."""
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it prints a line for every model, however small
    classes = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
    source: dict[str, Any] = {"revision": revision, "local_files_only": not allow_network}
    model_folder, tokenizer_folder = _subfolders(path, source)
    kind = AutoConfig.from_pretrained(path, **model_folder, **source).model_type
    if kind not in classes:
        raise ValueError(f"its text encoder is a {kind}, not a CLIP or a T5")
    tokenizer = AutoTokenizer.from_pretrained(path, **tokenizer_folder, **source)
    if len(tokenizer.get_vocab()) <= len(set(tokenizer.all_special_ids)):
        # transformers silently builds such a tokenizer from a folder without a vocabulary.
        raise ValueError("its tokenizer has no vocabulary")
    model = classes[kind].from_pretrained(path, use_safetensors=True, dtype=dtype, **model_folder, **source)
    name = path if revision is None else f"{path} at {revision}"
    return (T5TextEncoder if kind == "t5" else CLIPTextEncoder)(tokenizer, model.to(device), name)


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _subfolders(path: str, source: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the `subfolder` arguments of model and tokenizer; empty unless the layout is diffusers'."""
    from transformers.utils import cached_file

    if Path(path).is_dir():
        is_diffusers = (Path(path) / "text_encoder").is_dir()
    else:
        quiet: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
        quiet |= {"_raise_exceptions_for_connection_errors": False, "_raise_exceptions_for_gated_repo": False}
        try:
            is_diffusers = cached_file(path, "text_encoder/config.json", **quiet, **source) is not None
        except OSError:
            is_diffusers = False
    return ({"subfolder": "text_encoder"}, {"subfolder": "tokenizer"}) if is_diffusers else ({}, {})
