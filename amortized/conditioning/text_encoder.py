"""Text encoders: CLIP as Stable Diffusion uses it, and T5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from amortized.conditioning.fitting import Tokenizing
from amortized.conditioning.three_encoders import ThreeTextEncoders
from amortized.conditioning.two_encoders import TwoTextEncoders
from amortized.files import in_project
from amortized.model_folders import (
    NO_ADDITIONS,
    Additions,
    TextFolder,
    TextFolders,
    build_empty,
    check_fit,
    is_single_file,
    load_tokenizer,
    load_weights,
    local_folder,
    read_single_text,
    read_text_folders,
    sentences,
)
from amortized.model_folders.lora import TEXT, fuse
from amortized.model_folders.new_tokens import add_new_token
from amortized.model_folders.text_folder import ALIASES, wanted_files
from amortized.model_folders.tokenizers import check_vocabulary, published_tokenizer
from amortized.network import network_on_request
from amortized.transfer import to_device
from amortized.types import TextCondition


class TextEncoder(Tokenizing, Protocol):
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
        self.pieces: dict[int, list[int]] = {}  # ids for which the id of an added token stands
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
        ids, lengths = self.token_ids(texts)
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
        return len(self._word_ids(text)) > self.max_length - 2

    def num_pieces(self, word: str) -> int | None:
        """Return the number of tokens of a word; None if it has a letter that is in no token."""
        return _num_pieces(self._word_ids(word), self.tokenizer)

    def fingerprint(self) -> str:
        """Return precision and a digest of weights and vocabulary: "float32 0123456789abcdef"."""
        return _fingerprint(self.tokenizer, self.model)

    def _word_ids(self, text: str) -> list[int]:
        """Tokenize a text, without begin and end tokens."""
        return [piece for word in _word_ids(self.tokenizer, text) for piece in self.pieces.get(word, [word])]

    def token_ids(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids [N, L] (long) and token counts [N], begin and end included."""
        tokenizer, max_words = self.tokenizer, self.max_length - 2
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids = torch.full((len(texts), self.max_length), padding, dtype=torch.long)
        lengths = torch.empty(len(texts), dtype=torch.long)
        for row, text in enumerate(texts):
            words = self._word_ids(text)
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
        device = next(self.model.parameters()).device
        ids, mask = to_device(self.token_ids(texts, self.max_length), device)
        tokens = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        tokens = tokens * mask[..., None]
        return TextCondition(pooled=tokens.sum(1) / mask.sum(1, keepdim=True), tokens=tokens, mask=mask)

    def is_overlong(self, text: str) -> bool:
        """Return whether `encode` truncates the text."""
        return len(_word_ids(self.tokenizer, text)) > self.max_length - 1

    def token_ids(self, texts: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids [N, length] (long), filled with padding, and the mask of the rest."""
        ids = torch.full((len(texts), length), self.tokenizer.pad_token_id, dtype=torch.long)
        lengths = torch.empty(len(texts), dtype=torch.long)
        for row, text in enumerate(texts):
            sequence = [*_word_ids(self.tokenizer, text)[: length - 1], self.tokenizer.eos_token_id]
            ids[row, : len(sequence)] = torch.tensor(sequence)
            lengths[row] = len(sequence)
        return ids, torch.arange(length)[None] < lengths[:, None]

    def num_pieces(self, word: str) -> int | None:
        """Return the number of tokens of a word; None if it has a letter that is in no token."""
        return _num_pieces(_word_ids(self.tokenizer, word), self.tokenizer)

    def fingerprint(self) -> str:
        """Return precision and a digest of weights and vocabulary: "float32 0123456789abcdef"."""
        return _fingerprint(self.tokenizer, self.model)


AnyTextEncoder = CLIPTextEncoder | T5TextEncoder | TwoTextEncoders | ThreeTextEncoders


def _batch_size(model: Any) -> int:
    """On a GPU, a few texts take as long as one. On a CPU, padding to a full batch would only cost time."""
    return 8 if next(model.parameters()).device.type == "cuda" else 1


def _word_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a text, without begin and end tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _num_pieces(ids: Sequence[int], tokenizer: Any) -> int | None:
    return None if tokenizer.unk_token_id in ids else len(ids)


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
    additions: Additions = NO_ADDITIONS,
) -> AnyTextEncoder:
    """Load the text encoder of a diffusers folder, or a CLIP or T5 in the format of transformers.

    `path` is a folder, a single-file checkpoint, or a Hub id that is cached or may be downloaded. Only
    safetensors weights are read. Raises ValueError if it cannot be loaded, or `additions` do not fit it.
    """
    try:
        local = in_project(path)
        if is_single_file(local):
            files = TextFolders(read_single_text(Path(local)))
        else:
            folder = local_folder(local, revision=revision, allow_network=allow_network, wanted=wanted_files)
            files = read_text_folders(folder)
        name = path if revision is None else f"{path} at {revision}"
        encoder = build_text_encoders(files, name, dtype=dtype, device=device)
    except ValueError as error:
        raise ValueError(
            f"the text encoder '{path}' cannot be loaded: {str(error).rstrip('.')}; give a diffusers folder, "
            "a CLIP or T5 folder with a tokenizer and .safetensors weights, or a Hub id"
        ) from error
    add_to_encoder(encoder, additions)
    return encoder


def build_text_encoders(
    files: TextFolders, name: str, *, dtype: torch.dtype, device: torch.device | str
) -> AnyTextEncoder:
    """Load the text encoders of a model as one; raises ValueError, see `build_text_encoder`."""
    encoders = [build_text_encoder(each, name, dtype=dtype, device=device) for each in files.all]
    if files.second is None:
        return encoders[0]
    if files.joint_width is not None:
        third = None if files.third is None else encoders[2]
        return ThreeTextEncoders(encoders[0], encoders[1], third, files.joint_width, name)
    return TwoTextEncoders(encoders[0], encoders[1], name, zero_empty=files.zero_empty)


def add_to_encoder(encoder: AnyTextEncoder, additions: Additions) -> None:
    """Add LoRAs and tokens to a text encoder, in place; raises ValueError if they do not fit it."""
    if isinstance(encoder, (TwoTextEncoders, ThreeTextEncoders)) and additions != NO_ADDITIONS:
        kind = "an SDXL" if isinstance(encoder, TwoTextEncoders) else "a Stable Diffusion 3"
        raise ValueError(
            f"'{encoder.name}' is {kind}, for which prior.loras and prior.tokens are not supported: set "
            "them to null"
        )
    for lora in additions.loras:
        fuse(lora, TEXT, encoder.model)
    for new in additions.tokens:
        if not isinstance(encoder, CLIPTextEncoder):
            raise ValueError(f"prior.tokens: '{new.token}' needs a CLIP, and '{encoder.name}' is a T5")
        encoder.pieces |= add_new_token(new, encoder.tokenizer, encoder.model)


def build_text_encoder(
    folder: TextFolder, name: str, *, dtype: torch.dtype, device: torch.device | str
) -> CLIPTextEncoder | T5TextEncoder:
    """Load the text encoder of a folder that has been read.

    Raises ValueError if tokenizer or weights do not fit the config, or are damaged.
    """
    from transformers import CLIPTextConfig, T5Config, T5EncoderModel
    from transformers import CLIPTextModel as Plain
    from transformers import CLIPTextModelWithProjection as Projected

    if folder.kind == "T5":
        model = build_empty(folder.config_file, lambda: T5EncoderModel(T5Config(**folder.config)))
    else:
        kind = Projected if folder.projected else Plain
        model = build_empty(folder.config_file, lambda: kind(CLIPTextConfig(**folder.config)))
    expected = model.state_dict()
    headers = check_fit(
        model, folder.weights, lambda given: folder.rename(given, expected), aliases=ALIASES[folder.kind]
    )
    if folder.tokenizer is None:
        tokenizer = published_tokenizer(folder.padding, folder.config["max_position_embeddings"])
    else:
        tokenizer = load_tokenizer(folder.tokenizer, f"{folder.kind}Tokenizer")
    rows = model.get_input_embeddings().num_embeddings
    check_vocabulary(tokenizer, rows, folder.tokenizer or folder.config_file)
    # T5's last layer of each block overflows float16, and transformers computes it in float32.
    load_weights(model, headers, dtype, float32=("wo",) if folder.kind == "T5" else ())
    model.tie_weights()
    encoder = (T5TextEncoder if folder.kind == "T5" else CLIPTextEncoder)(tokenizer, model.to(device), name)
    if torch.device(device).type != "meta":
        with sentences(f"{folder.config_file} does not describe a text encoder that runs"):
            if not encoder.encode([""]).tokens.isfinite().all():
                raise ValueError("the tokens of a text are not finite")
    return encoder
