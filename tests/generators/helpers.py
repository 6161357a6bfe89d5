"""Texts, and generators that are past their start, for all tests of generators."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from amortized.types import TextCondition

TEXT_DIM = 6
Module = TypeVar("Module", bound=nn.Module)


def texts(num_prompts: int, length: int = 5, seed: int = 3) -> TextCondition:
    """Random text; prompt p has length - p tokens of its own, the rest is padding."""
    random = torch.Generator().manual_seed(seed)
    return TextCondition(
        pooled=torch.randn(num_prompts, TEXT_DIM, generator=random),
        tokens=torch.randn(num_prompts, length, TEXT_DIM, generator=random),
        mask=torch.arange(length) < length - torch.arange(num_prompts)[:, None],
    )


def rows_of(text: TextCondition, rows: slice) -> TextCondition:
    return TextCondition(**{name: value[rows] for name, value in vars(text).items()})


def in_double(text: TextCondition) -> TextCondition:
    return TextCondition(pooled=text.pooled.double(), tokens=text.tokens.double(), mask=text.mask)


def moved(module: Module, by: float = 0.2) -> Module:
    """The module with every parameter away from its start, in evaluation: spectral norms stay as they are."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module.eval()
