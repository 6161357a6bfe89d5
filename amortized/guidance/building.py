"""Build guidance from its config, with a reference model if the method has one (VSD, LODS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from amortized.conditioning.views import ViewTextConfig
from amortized.guidance.config import GuidanceConfig
from amortized.guidance.distillation import Guidance
from amortized.guidance.learned import LearnedReference, build_learned
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
    """Build the guidance on `prior`, with its learned reference model if the method has one (VSD, LODS).

    encode           encodes N texts for the prior: N rows, on its device
    num_prompts      the number of training prompts, for a null per prompt
    seed             determines the initial weights of the reference model
    negative_prompt  the text of the null from which a learned null starts

    A LoRA reference model adds an adapter to the prior: build one guidance per prior. Raises ValueError if
    the prior cannot serve the method.
    """
    learned: LearnedReference | None = None
    if config.learned is not None:
        text = None if config.learned.text is None else encode([config.learned.text])
        null = encode([negative_prompt])
        learned = build_learned(
            config.learned, prior, null=null, text=text, num_prompts=num_prompts, seed=seed
        )
    return Guidance(prior, config, learned)


def check_guidance(config: GuidanceConfig, prior: PriorConfig, views: ViewTextConfig) -> None:
    """Raise ValueError if settings of guidance, prior and view texts exclude each other."""
    if config.trajectory.cache and (views.direction_step_deg or views.interpolates):
        raise ValueError(
            "guidance.trajectory.cache stores a trajectory for each view text of a prompt, and there are too "
            "many of them here: set views.direction_step_deg=0, views.perp_neg=false and "
            "views.interpolate=null"
        )
    if config.learned is not None and prior.offload:
        raise ValueError(
            "guidance.learned needs the denoiser in GPU memory for its backward pass, but prior.offload "
            "moves it away: set prior.offload=false"
        )
