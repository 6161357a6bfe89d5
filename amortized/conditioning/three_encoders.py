"""The text encoders of Stable Diffusion 3 (arXiv 2403.03206, appendix B.3) as one: two CLIPs and a T5."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from amortized.conditioning.two_encoders import check_lengths, clip_states, most_pieces
from amortized.transfer import to_device
from amortized.types import TextCondition

T5_LENGTH = 256  # tokens, as in diffusers' pipeline


class ThreeTextEncoders:
    """Two CLIP text encoders and, if present, a T5, as diffusers' StableDiffusion3Pipeline joins them.

    `tokens` are those of the CLIPs before the last layer, side by side and filled with zeros to width D, then
    the 256 of the T5, which are zeros without one. `pooled` are the two projections of the CLIPs, filled with
    zeros to width D; the denoiser takes the first `pooled_width`.
    """

    def __init__(self, first: Any, second: Any, third: Any | None, width: int, name: str = "") -> None:
        """Join two `CLIPTextEncoder`, each with a CLIPTextModelWithProjection, and a `T5TextEncoder`.

        width  D, of the denoiser's tokens

        Raises ValueError if the encoders do not fit each other or the width.
        """
        check_lengths(first, second)
        self.pooled_width: int = sum(each.model.config.projection_dim for each in (first, second))
        if max(first.width + second.width, self.pooled_width) > width:
            raise ValueError(
                f"the two CLIPs have tokens of width {first.width} and {second.width} and project to "
                f"{self.pooled_width} together, more than the {width} of the denoiser's tokens"
            )
        if third is not None and third.width != width:
            raise ValueError(f"the T5 has width {third.width}, but the denoiser's tokens have {width}")
        self.first, self.second, self.third, self.width, self.name = first, second, third, width, name
        encoders = (first, second) if third is None else (first, second, third)
        self.encoders: tuple[Any, ...] = encoders
        self.model = torch.nn.ModuleList([encoder.model for encoder in encoders])
        self.max_length: int = first.max_length  # of a text in the CLIPs

    @property
    def batch_size(self) -> int:
        """Texts per forward pass."""
        return self.first.batch_size

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextCondition:
        """Encode N texts to a condition of N rows, float32, on the models' device."""
        states = [clip_states(encoder, texts) for encoder in (self.first, self.second)]
        projected = [
            encoder.model.text_projection(pooled)
            for encoder, (_, pooled, _) in zip((self.first, self.second), states, strict=True)
        ]
        pooled = torch.cat([each.float() for each in projected], dim=1)
        tokens, mask = torch.cat([each for each, _, _ in states], dim=2), states[0][2]
        tokens = pad(tokens, (0, self.width - tokens.shape[-1]))
        more, more_mask = self._t5_tokens(texts, tokens)
        return TextCondition(
            pooled=pad(pooled, (0, self.width - pooled.shape[-1])),
            tokens=torch.cat([tokens, more], dim=1),
            mask=torch.cat([mask, more_mask], dim=1),
        )

    def _t5_tokens(self, texts: Sequence[str], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens [N, 256, D] of the T5, padding included as in training, and the mask [N, 256]."""
        if self.third is None:
            zeros = like.new_zeros(len(texts), T5_LENGTH, self.width)
            return zeros, torch.zeros(zeros.shape[:2], dtype=torch.bool, device=like.device)
        ids, mask = to_device(self.third.token_ids(texts, T5_LENGTH), like.device)
        return self.third.model(input_ids=ids).last_hidden_state.float(), mask

    def is_overlong(self, text: str) -> bool:
        """Return whether `encode` truncates the text for the CLIPs; the T5 takes longer ones."""
        return self.first.is_overlong(text) or self.second.is_overlong(text)

    def num_pieces(self, word: str) -> int | None:
        """Return the number of tokens of a word; None if it has a letter that is in no token."""
        return most_pieces(self.encoders, word)

    def fingerprint(self) -> str:
        """Return precision and a digest of weights and vocabularies: "float32 0123456789abcdef"."""
        prints = [encoder.fingerprint() for encoder in self.encoders]
        digest = hashlib.blake2b(f"{prints} {self.width}".encode(), digest_size=8)
        return f"{prints[0].partition(' ')[0]} {digest.hexdigest()}"
