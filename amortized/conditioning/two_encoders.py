"""The two text encoders of SDXL (arXiv 2307.01952, section 2.1) as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from amortized.transfer import to_device
from amortized.types import TextCondition


class TwoTextEncoders:
    """Two CLIP text encoders whose tokens, before the last layer, and pooled vectors are joined.

    The second half of `pooled` is the second encoder's projection, the input of SDXL's denoiser. With
    `zero_empty` the empty text is all zeros, as in the training of SDXL.
    """

    def __init__(self, first: Any, second: Any, name: str = "", *, zero_empty: bool = True) -> None:
        """Join two `CLIPTextEncoder`; the second has a CLIPTextModelWithProjection.

        Raises ValueError if their texts have different lengths, or the projection has another width than the
        second encoder.
        """
        check_lengths(first, second)
        if second.model.config.projection_dim != second.width:
            raise ValueError(
                f"the second text encoder projects its width {second.width} to "
                f"{second.model.config.projection_dim}, and only equal widths are supported"
            )
        self.first, self.second, self.name, self.zero_empty = first, second, name, zero_empty
        self.model = torch.nn.ModuleList([first.model, second.model])
        self.max_length: int = first.max_length

    @property
    def width(self) -> int:
        """D, the width of `pooled` and `tokens`: that of both encoders together."""
        return self.first.width + self.second.width

    @property
    def batch_size(self) -> int:
        """Texts per forward pass."""
        return self.first.batch_size

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextCondition:
        """Encode N texts to a condition of N rows, float32, on the models' device."""
        (first, first_pooled, mask), (second, pooled, _) = (
            clip_states(encoder, texts) for encoder in (self.first, self.second)
        )
        pooled = self.second.model.text_projection(pooled)
        device = mask.device
        is_used = torch.tensor([text != "" or not self.zero_empty for text in texts], device=device)
        return TextCondition(
            pooled=torch.cat([first_pooled.float(), pooled.float()], dim=1) * is_used[:, None],
            tokens=torch.cat([first, second], dim=2) * is_used[:, None, None],
            mask=mask,
        )

    def is_overlong(self, text: str) -> bool:
        """Return whether `encode` truncates the text."""
        return self.first.is_overlong(text) or self.second.is_overlong(text)

    def num_pieces(self, word: str) -> int | None:
        """Return the number of tokens of a word; None if it has a letter that is in no token."""
        return most_pieces((self.first, self.second), word)

    def fingerprint(self) -> str:
        """Return precision and a digest of weights and vocabularies: "float32 0123456789abcdef"."""
        prints = [encoder.fingerprint() for encoder in (self.first, self.second)]
        text = f"{prints} {self.zero_empty}"
        return f"{prints[0].partition(' ')[0]} {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def clip_states(encoder: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what a `CLIPTextEncoder` gives for N texts.

    Its tokens before the last layer [N, L, D], float32; the last layer at the end-of-text token [N, D], which
    is not projected yet; and the mask [N, L].
    """
    device = next(encoder.model.parameters()).device
    ids, lengths = to_device(encoder.token_ids(texts), device)
    outputs = encoder.model(input_ids=ids, output_hidden_states=True)
    rows = torch.arange(len(texts), device=device)
    mask = torch.arange(encoder.max_length, device=device)[None] < lengths[:, None]
    return outputs.hidden_states[-2].float(), outputs.last_hidden_state[rows, lengths - 1], mask


def check_lengths(first: Any, second: Any) -> None:
    """Raise ValueError if two text encoders take texts of different lengths."""
    if first.max_length != second.max_length:
        raise ValueError(
            f"the two text encoders take texts of {first.max_length} and {second.max_length} tokens"
        )


def most_pieces(encoders: Sequence[Any], word: str) -> int | None:
    """Return the largest number of tokens of a word; None if an encoder does not know one of its letters."""
    pieces = [encoder.num_pieces(word) for encoder in encoders]
    known = [count for count in pieces if count is not None]
    return max(known) if len(known) == len(pieces) else None
