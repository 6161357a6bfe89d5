"""The exponential moving average of a module's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """An averaged copy of a module, ready for inference.

    The decay is warmed up, min(decay, (1 + step) / (10 + step)), so that early weights fade quickly. It is
    a function of the step: only the averaged weights need saving.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Average in the weights after `step`, counted from 0; copy the buffers."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), share)
        for averaged, new in zip(self.module.buffers(), module.buffers(), strict=True):
            averaged.copy_(new)
