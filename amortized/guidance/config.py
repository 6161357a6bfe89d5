"""Settings of score distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from amortized.config import Schedule, build_config, check, check_schedule, times_of, value_at
from amortized.guidance.method_table import METHODS

Weighting = Literal["one_minus_alphas_cumprod", "uniform", "sqrt", "sigma_over_alpha"]


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """DDIM inversion, which computes the noise of given latents."""

    stride: float = 0.2  # longest step, as a fraction of the diffusion time
    scale: float = 0.0  # CFG scale; 0: unconditional; negative: away from the text
    eta: float = 0.0  # fraction of fresh noise in each step; 0: deterministic

    def __post_init__(self) -> None:
        check(self, "stride", at_least=0.001, at_most=1)  # one of the usual 1,000 timesteps
        check(self, "eta", at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """The deterministic trajectory from an asset's seed."""

    num_steps: int = 10  # of DDIM over the whole diffusion time
    scale: float = 7.5  # CFG scale
    # Cache the predictions for every asset and view: a third of the denoiser calls, at the cost of memory
    # (see --dry-run). Needs few views per prompt: no numbered directions, no Perp-Neg.
    cache: bool = False

    def __post_init__(self) -> None:
        check(self, "num_steps", at_least=1, limit=1000)


@dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """The reference model of VSD and LODS: a text condition or LoRA that models the distribution of renders.

    Trained together with the generator on E |e(z_t', t', .) - noise|^2, t' uniform over the diffusion time.
    """

    # null: one learned null for all prompts; prompt-nulls: one per prompt; adapter: one, plus a residual
    # that a small network predicts from the prompt's tokens; lora: a LoRA of the prior.
    kind: Literal["null", "prompt-nulls", "adapter", "lora"] = "null"
    learning_rate: float = 1e-5
    weight_decay: float | None = None  # for optimizer.name=adamw or adan; null: none
    weight: float = 1.0  # of its loss
    every: int = 1  # steps between updates
    width: int = 64  # adapter: hidden width
    rank: int = 4  # lora: its rank
    lora_scale: float = 1.0  # lora: factor of its output
    text: str | None = None  # lora: the one text to query it with; null: each image's text

    def __post_init__(self) -> None:
        check(self, "learning_rate", "weight", "lora_scale", above=0)
        check(self, "weight_decay", at_least=0, limit=1)
        check(self, "every", at_least=1, limit=10**9)
        check(self, "width", "rank", at_least=1, limit=2**16)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """A method of score distillation, in five parts. Defaults are ASD's; `published` gives any method's.

    Schedules run over the training (see `amortized.config.schedules`); times are fractions of the diffusion
    time.
    """

    # `guidance.method=NAME` in a preset: start from these values.
    templates: ClassVar[tuple[str, Mapping[str, Any]]] = ("method", METHODS)

    # The published method that the values started from, for reports; null: see `method_name`.
    method: str | None = field(default=None, compare=False)
    # t is uniform between two bounds; equal bounds fix it.
    t_min: Schedule = (0.5, 0.02)
    t_max: Schedule = (0.98, 0.5)
    t_curve: Literal["linear", "sqrt"] = "linear"  # sqrt: evaluate both bounds at the root of the progress
    # Draw t and t' once per group of views that the prior denoises together (usually one image), or once per
    # prompt for all its views.
    time_per: Literal["group", "prompt"] = "group"
    # t', the timestep of the reference. later: t + u * min(eta * (t - start), T - 1 - t); earlier: t - span.
    shift: Literal["none", "later", "earlier"] = "later"
    shift_eta: float = 0.1
    shift_random: bool = True  # u uniform in [0, 1), or 1
    shift_start: float | None = None  # null: the current t_min
    shift_span: Schedule = 0.08
    # The noise in x_t: drawn; from DDIM inversion up to t'; or from the trajectory of the asset's seed.
    noise: Literal["gaussian", "inversion", "seed"] = "gaussian"
    inversion: InversionConfig = field(default_factory=InversionConfig)
    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    # The CFG pair of the target.
    guidance_scale: Schedule = 7.5
    null: Literal["prior", "learned"] = "prior"
    divide_by_scale: bool = False  # divide the whole gradient by guidance_scale
    # The reference: the noise in x_t; the null at t; a CFG pair at t'; the prediction of the inversion at t';
    # or the reference model at t.
    reference: Literal["noise", "null", "guided", "inverted", "learned"] = "guided"
    reference_scale: float = 1.0
    reference_negatives: bool = False  # apply Perp-Neg to it too
    learned: LearnedConfig | None = None
    # w(t), and a constant factor.
    weighting: Weighting = "one_minus_alphas_cumprod"
    weight: float = 1.0
    # Normalize the gradient of each image to norm 1; clip it to this norm. Both before `weight`.
    normalize: Literal["none", "per_sample"] = "none"
    max_norm: float | None = None
    # latent: the gradient reaches the images through the prior's encoder. image: w (target - reference),
    # which is a change of latents for weighting=sigma_over_alpha, is decoded to a residual of the images;
    # the encoder is not differentiated.
    residual: Literal["latent", "image"] = "latent"

    def __post_init__(self) -> None:
        self._check_times()
        check_schedule("guidance_scale", self.guidance_scale, positive=True)  # 0 would ignore the text
        check(self, "shift_eta", "weight", "reference_scale", at_least=0)
        check(self, "max_norm", above=0)
        if self.noise == "inversion" and self.shift == "later":
            raise ValueError(
                "noise=inversion goes up to t' and then to t: it needs shift=none or shift=earlier"
            )
        if self.reference == "inverted" and (self.noise, self.shift) != ("inversion", "earlier"):
            raise ValueError(
                "reference=inverted is the prediction of an inversion at an earlier timestep: it needs "
                "noise=inversion and shift=earlier"
            )
        if self.residual == "image" and self.weighting != "sigma_over_alpha":
            raise ValueError(
                "residual=image decodes a change of latents: it needs weighting=sigma_over_alpha, "
                f"got weighting={self.weighting}"
            )
        if self.learned is not None and not self.uses_learned:
            raise ValueError(
                "learned would be trained but not used: set null=learned or reference=learned, or "
                "remove it with learned=null"
            )
        if self.uses_learned and self.learned is None:
            raise ValueError("null=learned and reference=learned need a reference model: set learned.kind")

    def _check_times(self) -> None:
        for name in ("t_min", "t_max", "shift_span"):
            check_schedule(name, getattr(self, name))
        check(self, "shift_start", at_least=0, at_most=1)
        # Both are piecewise linear: if the order holds at all knots, it holds between them.
        for progress in sorted({0.0, 1.0, *times_of(self.t_min), *times_of(self.t_max)}):
            low, high = value_at(self.t_min, progress), value_at(self.t_max, progress)
            if not low <= high <= 1:
                raise ValueError(
                    "t_min and t_max must satisfy 0 <= t_min <= t_max <= 1, "
                    f"got [{low:g}, {high:g}] after {progress:.0%} of the run"
                )

    @property
    def uses_learned(self) -> bool:
        """Whether the gradient depends on the reference model."""
        return "learned" in (self.null, self.reference)


def published(method: str, **changes: Any) -> GuidanceConfig:
    """Return the config of a published method, one of METHODS, with changes; a section is a mapping."""
    return build_config(GuidanceConfig, {"method": method, **changes}, "guidance")


def method_name(config: GuidanceConfig) -> str:
    """The published method whose parts a config has, whatever its schedules and weights; else "custom".

    Of several it is the one that the config names.
    """
    same = [name for name in METHODS if _parts(published(name)) == _parts(config)]
    return config.method if config.method in same else same[0] if same else "custom"


def _parts(config: GuidanceConfig) -> tuple[object, ...]:
    """The choices that distinguish the published methods from each other."""
    null = config.learned.kind == "lora" if config.learned is not None and config.null == "learned" else None
    return config.noise, config.reference, config.null, config.shift, null
