"""w(t): how much a step at each noise level counts, given abar_t."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "one_minus_alphas_cumprod": lambda abar: 1 - abar,  # DreamFusion's sigma_t^2
    "uniform": torch.ones_like,
    "sqrt": lambda abar: abar.sqrt() * (1 - abar),  # little at both ends; largest at abar = 1/3
    "sigma_over_alpha": lambda abar: ((1 - abar) / abar).sqrt(),  # from noise to x0
}
