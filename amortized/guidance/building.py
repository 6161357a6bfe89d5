"""Build the guidance of a run: the method, and its reference model if it has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from amortized.conditioning.views import ViewTextConfig
from amortized.guidance.config import GuidanceConfig
from amortized.guidance.distillation import Guidance
from amortized.guidance.learned import build_learned
from amortized.priors.base import Prior, PriorConfig
from amortized.types import TextCondition


def build_guidance(
    config: GuidanceConfig,
    prior: Prior,
    *,
    encode: Callable[[Sequence[str]], TextCondition],
    num_prompts: int,
    seed: int,
    negative_prompt: str = "",
) -> Guidance:
    """Build a method of score distillation on `prior`, with its learned reference model (VSD, LODS).

    encode           encodes texts for the prior, N rows, on its device
    num_prompts      training prompts, for a reference model per prompt
    seed             determines the initial weights of the reference model
    negative_prompt  the null from which a learned null starts

    A LoRA reference model adds an adapter to the prior: build one guidance per prior. Raises ValueError if
    the prior cannot serve the method.
    """
    learned: nn.Module | None = None
    if config.learned is not None:
        text = None if config.learned.text is None else encode([config.learned.text])
        null = encode([negative_prompt])
        learned = build_learned(
            config.learned, prior, null=null, text=text, num_prompts=num_prompts, seed=seed
        )
    return Guidance(prior, config, learned)


def check_guidance(config: GuidanceConfig, prior: PriorConfig, views: ViewTextConfig) -> None:
    """Raise ValueError for settings of guidance, prior and view texts that exclude each other."""
    if config.trajectory.cache and (views.direction_step_deg or views.perp_neg):
        raise ValueError(
            "guidance.trajectory.cache caches a trajectory for each view of a prompt, of which there are too "
            "many here: it needs views.direction_step_deg=0 and views.perp_neg=false"
        )
    if config.learned is not None and prior.offload:
        raise ValueError(
            "guidance.learned needs the denoiser in GPU memory for its backward pass, but prior.offload "
            "moves it away: set prior.offload=false"
        )
