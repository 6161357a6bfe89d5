"""View-dependent text: suffixes such as ", front view", against the Janus problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amortized.cameras import VIEW_NAMES, view_index
from amortized.conditioning.rows import expand_row, take_rows
from amortized.config import check
from amortized.types import Cameras, TextCondition

NUM_VIEWS = len(VIEW_NAMES)
FRONT, SIDE, BACK, OVERHEAD = range(NUM_VIEWS)


@dataclass(frozen=True, kw_only=True)
class ViewTextConfig:
    """How the text of an image depends on its camera."""

    # Appended to the prompt, in the order of VIEW_NAMES: front, side, back, overhead.
    suffixes: tuple[str, str, str, str] = (", front view", ", side view", ", back view", ", overhead view")
    # Front within this of azimuth 0, back within this of 180; not used for interpolated texts.
    front_deg: float = 45.0
    overhead_deg: float = 60.0  # overhead above this elevation
    # If positive, append azimuth and elevation rounded to this multiple: ", front view az30 el-10".
    direction_step_deg: int = 0
    negative_prompt: str = ""  # the text of the unconditional branch
    # Interpolate the text by azimuth: front to side to back. Costs no denoiser images. null: with perp_neg.
    interpolate: bool | None = None
    perp_neg: bool = False  # interpolate between views and push away from the wrong ones
    perp_neg_weight: float = -0.5  # factor on Perp-Neg's negative weights
    # Further texts to push every view away from, and their weights.
    negatives: tuple[str, ...] = ()
    negative_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.suffixes) != NUM_VIEWS:
            raise ValueError(
                f"suffixes must be {NUM_VIEWS} texts ({', '.join(VIEW_NAMES)}), got {len(self.suffixes)}"
            )
        check(self, "front_deg", "direction_step_deg", at_least=0, at_most=90)
        check(self, "overhead_deg", at_least=-90, at_most=90)
        if self.perp_neg and self.interpolate is False:
            raise ValueError("perp_neg interpolates between views: set interpolate=true, or perp_neg=false")
        if self.direction_step_deg > 0 and self.interpolates:
            name = "perp_neg" if self.perp_neg else "interpolate"
            raise ValueError(f"{name} interpolates between the four views: it needs direction_step_deg=0")
        if self.perp_neg_weight > 0:
            raise ValueError(
                f"perp_neg_weight must not be positive, got {self.perp_neg_weight}: "
                "a positive weight pulls the image toward the wrong view"
            )
        if len(self.negatives) != len(self.negative_weights):
            raise ValueError(
                f"negatives has {len(self.negatives)} texts and negative_weights has "
                f"{len(self.negative_weights)} weights: give one negative weight for each text"
            )
        if any(weight > 0 for weight in self.negative_weights):
            raise ValueError(
                f"negative_weights must not be positive, got {list(self.negative_weights)}: "
                "a positive weight pulls the image toward the text it should avoid"
            )

    @property
    def interpolates(self) -> bool:
        """Whether the text of an image lies between those of two views."""
        return self.perp_neg or bool(self.interpolate)

    @property
    def num_negatives(self) -> int:
        """Number of negatives of every image."""
        return 2 * self.perp_neg + len(self.negatives)


def view_suffixes(cameras: Cameras, config: ViewTextConfig) -> list[str]:
    """Return the suffix of the prompt for each of the P * V images, prompt-major."""
    view = view_index(cameras, overhead_deg=config.overhead_deg, front_deg=config.front_deg)
    names = [config.suffixes[index] for index in view.flatten().tolist()]
    step = config.direction_step_deg
    if step == 0:
        return names
    azimuth, elevation = (
        (angle.flatten() / step).round().int().mul(step).tolist()
        for angle in (cameras.azimuth_deg, cameras.elevation_deg)
    )
    return [
        f"{name} {azimuth_word(a)} {elevation_word(e)}"
        for name, a, e in zip(names, azimuth, elevation, strict=True)
    ]


def azimuth_word(deg: int) -> str:
    """Return the word for an azimuth in degrees; 370 and 10 give the same word."""
    return f"az{deg % 360}"


def elevation_word(deg: int) -> str:
    """Return the word for an elevation in degrees."""
    return f"el{deg}"


@dataclass(frozen=True, kw_only=True)
class ViewText:
    """The prior's text conditions for a step's B images, prompt-major."""

    positive: TextCondition  # B rows
    unconditional: TextCondition  # B rows: the negative prompt
    empty: TextCondition  # B rows: the empty text ""
    negatives: tuple[TextCondition, ...]  # K conditions of B rows
    negative_weights: Tensor  # [K, B], zero or negative


def take_view_rows(text: ViewText, index: Tensor) -> ViewText:
    """Select the images `index` [N] (long, on the text's device)."""
    return ViewText(
        positive=take_rows(text.positive, index),
        unconditional=take_rows(text.unconditional, index),
        empty=take_rows(text.empty, index),
        negatives=tuple(take_rows(negative, index) for negative in text.negatives),
        negative_weights=text.negative_weights[:, index],
    )


def plain_text(positive: TextCondition, unconditional: TextCondition) -> ViewText:
    """Return the text of B images without negatives: `positive` has B rows, `unconditional` one."""
    num_images = len(positive.pooled)
    null = expand_row(unconditional, num_images)
    return ViewText(
        positive=positive,
        unconditional=null,
        empty=null,
        negatives=(),
        negative_weights=positive.pooled.new_zeros(0, num_images),
    )


def add_shared_texts(
    text: ViewText, *, empty: TextCondition, negatives: TextCondition, weights: Sequence[float]
) -> ViewText:
    """Set the empty text (one row) and append K negatives (K rows), the same for all images."""
    num_images = len(text.positive.pooled)
    added = torch.tensor(weights).to(text.negative_weights)[:, None].expand(-1, num_images)
    rows = [take_rows(negatives, torch.tensor([i])) for i in range(len(weights))]
    return replace(
        text,
        empty=expand_row(empty, num_images),
        negatives=text.negatives + tuple(expand_row(row, num_images) for row in rows),
        negative_weights=torch.cat([text.negative_weights, added]),
    )
