"""Sentences => TextCondition, with the text encoder that a diffusion model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from amortized.types import TextCondition


class TextEncoder:
    """A CLIP-style causal tokenizer and text model, read as Stable Diffusion reads them.

    The sentence vector is taken at the end-of-text token by position. The pooled output of
    `transformers` is not used: where a config says `eos_token_id == 2` it pools at the *largest*
    token id, which for a small vocabulary is any word of the sentence.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        """`tokenizer`: a Hugging Face tokenizer; `model`: a CLIPTextModel, frozen here."""
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.max_length: int = min(int(tokenizer.model_max_length), model.config.max_position_embeddings)
        # Sentences cut so far: a run should say so once, because their last words had no effect.
        self.num_truncated = 0
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ValueError(
                "the text encoder's tokenizer has no begin-of-text or end-of-text token; "
                "use a CLIP-style tokenizer, which defines both"
            )

    @property
    def width(self) -> int:
        """D, the width of `pooled` and `tokens`."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextCondition:
        """N sentences => a condition of N rows, float32, on the model's device; "" is a sentence.

        Every row is [begin, words, end, padding] of length L. A sentence of more than L - 2 tokens
        keeps its first L - 2 *and* its end token, where naive slicing to L loses the end token and
        with it the pooled vector; it is counted in `num_truncated`.
        """
        ids, lengths = self._token_ids(texts)
        device = next(self.model.parameters()).device
        ids, lengths = ids.to(device), lengths.to(device)
        # No attention mask, as diffusers calls it: the model is causal, so words never see padding.
        tokens = self.model(input_ids=ids).last_hidden_state.float()  # [N, L, D] after the final layer norm
        rows = torch.arange(len(texts), device=device)
        positions = torch.arange(self.max_length, device=device)
        return TextCondition(
            pooled=tokens[rows, lengths - 1], tokens=tokens, mask=positions[None] < lengths[:, None]
        )

    def _token_ids(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [N, L] long and the count of tokens [N], begin and end included."""
        tokenizer, room = self.tokenizer, self.max_length - 2
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids = torch.full((len(texts), self.max_length), padding, dtype=torch.long)
        lengths = torch.empty(len(texts), dtype=torch.long)
        for row, text in enumerate(texts):
            words = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            self.num_truncated += len(words) > room
            sentence = [tokenizer.bos_token_id, *words[:room], tokenizer.eos_token_id]
            ids[row, : len(sentence)] = torch.tensor(sentence)
            lengths[row] = len(sentence)
        return ids, lengths
