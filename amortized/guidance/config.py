"""The settings of score distillation, and the random numbers a step reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from amortized.config import Schedule, build_config, check_schedule, value_at
from amortized.guidance.methods import METHODS
from amortized.guidance.weights import WEIGHTINGS

NOISES = ("gaussian", "inversion", "seed")
REFERENCES = ("noise", "null", "guided", "inverted", "learned")
SHIFTS = ("none", "later", "earlier")


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How noise is found in the latents themselves, by running DDIM backwards."""

    stride: float = 0.2  # longest step, as a fraction of the diffusion time
    scale: float = 0.0  # CFG of the inversion; 0 asks without text, negative scales push away from it
    eta: float = 0.0  # share of fresh noise in every step

    def __post_init__(self) -> None:
        if not 0 < self.stride <= 1:
            raise ValueError(f"guidance.inversion.stride must lie in (0, 1], got {self.stride}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"guidance.inversion.eta must lie in [0, 1], got {self.eta}")


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """The deterministic trajectory from an asset's seed."""

    num_steps: int = 10  # of DDIM over the whole diffusion time
    scale: float = 7.5  # CFG along it
    # Keep what was predicted along it for every asset and view: a third of the denoiser calls, for memory
    # (see --dry-run). Only where a prompt has few views: no numbered directions, no perp-neg.
    cache: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"guidance.trajectory.num_steps must be at least 1, got {self.num_steps}")


@dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """A model of the renders: what the prior would have to be told to predict their noise.

    Trained beside the generator on E |e(z_t', t', .) - noise|^2, t' uniform over the diffusion time.
    """

    # null: one text in place of the null, for all prompts; prompt-nulls: one for each prompt;
    # adapter: one, and what a small network adds to it from the prompt's tokens; lora: weights of the prior.
    kind: Literal["null", "prompt-nulls", "adapter", "lora"] = "null"
    learning_rate: float = 1e-5
    weight: float = 1.0
    every: int = 1  # trained at every so many steps
    width: int = 64  # adapter: its hidden width
    rank: int = 4  # lora
    lora_scale: float = 1.0
    text: str | None = None  # lora: the one text that it reads; None: each image's own

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight", "lora_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"guidance.learned.{name} must be positive, got {getattr(self, name)}")
        for name in ("every", "width", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"guidance.learned.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How a prior teaches: five parts. The defaults are ASD's; `published` gives any method's.

    Schedules run over the training, see `amortized.schedules`; times are fractions of the diffusion
    time.
    """

    # `guidance.method=NAME` in a preset: these settings, and the others over them.
    templates: ClassVar[tuple[str, Mapping[str, Any]]] = ("method", METHODS)

    # t is uniform between two bounds; both the same: no randomness.
    t_min: Schedule = (0.5, 0.02)
    t_max: Schedule = (0.98, 0.5)
    t_curve: Literal["linear", "sqrt"] = "linear"  # sqrt: both bounds run over the root of the progress
    # t and t' are drawn for each group of views that the prior denoises together (mostly, each image), or
    # for each prompt, all its views alike.
    time_per: Literal["group", "prompt"] = "group"
    # t', where the reference looks. later: t + u * min(eta * (t - start), T - 1 - t); earlier: t - span.
    shift: str = "later"  # one of SHIFTS
    shift_eta: float = 0.1
    shift_random: bool = True  # u uniform in [0, 1), or 1
    shift_start: float | None = None  # None: t_min of the moment
    shift_span: Schedule = 0.08
    # Where the noise in x_t comes from: drawn; found by inversion up to t'; or the asset's trajectory.
    noise: str = "gaussian"  # one of NOISES
    inversion: InversionConfig = field(default_factory=InversionConfig)
    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    # The CFG pair of the target.
    guidance_scale: Schedule = 7.5
    null: Literal["prior", "learned"] = "prior"
    divide_by_scale: bool = False  # the whole gradient
    # What is subtracted: the noise in x_t; the null at t; a CFG pair at t'; what the inversion met at t';
    # or the learned model at t.
    reference: str = "guided"  # one of REFERENCES
    reference_scale: float = 1.0
    reference_negatives: bool = False  # whether perp-neg acts on it too
    learned: LearnedConfig | None = None
    # w(t), and the size of the whole.
    weighting: str = "one_minus_alphas_cumprod"  # one of WEIGHTINGS
    weight: float = 1.0
    # The gradient of each image: as it is, or of norm 1; and cut to this norm. Before `weight`.
    normalize: Literal["none", "per_sample"] = "none"
    max_norm: float | None = None
    # latent: through the prior's encoder to the images. image: w (target - reference) is a change of latents
    # (with weighting=sigma_over_alpha); decoded, it is the residual of the images, and no gradient needs the
    # encoder.
    residual: Literal["latent", "image"] = "latent"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("shift", self.shift, SHIFTS),
            ("noise", self.noise, NOISES),
            ("reference", self.reference, REFERENCES),
            ("weighting", self.weighting, tuple(WEIGHTINGS)),
        ):
            if value not in choices:
                raise ValueError(f"guidance.{name} must be one of {', '.join(choices)}, got '{value}'")
        self._check_times()
        check_schedule("guidance.guidance_scale", self.guidance_scale, positive=True)  # at 0 no text is asked
        for name in ("shift_eta", "weight", "reference_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"guidance.{name} must not be negative, got {getattr(self, name)}")
        if self.max_norm is not None and self.max_norm <= 0:
            raise ValueError(f"guidance.max_norm must be positive or null, got {self.max_norm}")
        if self.noise == "inversion" and self.shift == "later":
            raise ValueError(
                "guidance.noise=inversion goes up to t' and on to t: it needs shift=none or earlier"
            )
        if self.reference == "inverted" and (self.noise, self.shift) != ("inversion", "earlier"):
            raise ValueError(
                "guidance.reference=inverted is what an inversion meets at an earlier time: "
                "it needs noise=inversion and shift=earlier"
            )
        if self.residual == "image" and self.weighting != "sigma_over_alpha":
            raise ValueError(
                "guidance.residual=image decodes a change of latents, which only "
                f"guidance.weighting=sigma_over_alpha gives, got '{self.weighting}'"
            )
        if self.learned is not None and not self.uses_learned:
            raise ValueError(
                "guidance.learned would be trained, and nothing reads it: set guidance.null=learned or "
                "guidance.reference=learned, or guidance.learned=null"
            )
        if self.uses_learned and self.learned is None:
            raise ValueError(
                "guidance.null=learned and guidance.reference=learned need to know what is learned: "
                "set guidance.learned.kind"
            )

    def _check_times(self) -> None:
        for name in ("t_min", "t_max", "shift_span"):
            check_schedule(f"guidance.{name}", getattr(self, name))
        if self.shift_start is not None and not 0 <= self.shift_start <= 1:
            raise ValueError(f"guidance.shift_start must lie in [0, 1] or be null, got {self.shift_start}")
        # Both are piecewise linear: where they hold at all knots, they hold between them.
        for progress in sorted({*_times(self.t_min), *_times(self.t_max)}):
            low, high = value_at(self.t_min, progress), value_at(self.t_max, progress)
            if not low <= high <= 1:
                raise ValueError(
                    "guidance.t_min and guidance.t_max must satisfy 0 <= t_min <= t_max <= 1, "
                    f"got [{low:g}, {high:g}] after {progress:.0%} of the run"
                )

    @property
    def uses_learned(self) -> bool:
        """Whether the gradient reads a learned model of the renders."""
        return "learned" in (self.null, self.reference)


def published(method: str, **changes: Any) -> GuidanceConfig:
    """The settings of a published method, one of METHODS, with changes; sections are given as mappings."""
    return build_config(GuidanceConfig, {"method": method, **changes}, "guidance")


def _times(schedule: Schedule) -> tuple[float, ...]:
    """Where a schedule may bend."""
    if isinstance(schedule, (int, float)) or len(schedule) == 2:
        return 0.0, 1.0
    return 0.0, schedule[0], *schedule[3::2], 1.0


@dataclass(frozen=True, kw_only=True)
class GuidanceDraws:
    """The random numbers of one step, made outside so that they depend on (seed, step, image) alone.

    Any device and floating dtype. Where images share a time, they use the first one's u; noise is always
    each image's own. What only some methods need is drawn from
    `keys` where they need it: two images of equal key get equal numbers.
    """

    u_timestep: Tensor  # [B] in [0, 1)
    u_shift: Tensor  # [B] in [0, 1)
    u_learned: Tensor  # [B] in [0, 1), for the time at which a learned model is trained
    noise: Tensor  # [B, C, h, w] standard normal
    keys: Tensor  # [B] int64 on the CPU
    seeds: Tensor  # [B] int64 on the CPU: which trajectory the image's asset follows
    prompts: Tensor  # [B] int64: index of the image's prompt among all that are trained on
