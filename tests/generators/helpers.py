"""Random text, and modules with perturbed weights, for the tests of generators."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from amortized.types import TextCondition

TEXT_DIM = 6
Module = TypeVar("Module", bound=nn.Module)


def texts(num_prompts: int, length: int = 5, seed: int = 3) -> TextCondition:
    """Return random text conditions; prompt p has length - p tokens, the rest is padding."""
    random = torch.Generator().manual_seed(seed)
    return TextCondition(
        pooled=torch.randn(num_prompts, TEXT_DIM, generator=random),
        tokens=torch.randn(num_prompts, length, TEXT_DIM, generator=random),
        mask=torch.arange(length) < length - torch.arange(num_prompts)[:, None],
    )


def rows_of(text: TextCondition, rows: slice) -> TextCondition:
    """Return the text conditions of some prompts."""
    return TextCondition(**{name: value[rows] for name, value in vars(text).items()})


def in_double(text: TextCondition) -> TextCondition:
    """Return the same text in float64."""
    return TextCondition(pooled=text.pooled.double(), tokens=text.tokens.double(), mask=text.mask)


def perturb(module: Module, by: float = 0.2) -> Module:
    """Add noise to all parameters, and set evaluation mode, in which spectral norms are not updated."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module.eval()
