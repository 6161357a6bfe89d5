"""Words for the view of each camera: the fight against objects with a front on every side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amortized.cameras import VIEW_NAMES, view_index
from amortized.conditioning.rows import expand_row, mix_rows, take_rows
from amortized.types import Cameras, TextCondition

NUM_VIEWS = len(VIEW_NAMES)
FRONT, SIDE, BACK, OVERHEAD = range(NUM_VIEWS)


@dataclass(frozen=True, kw_only=True)
class ViewTextConfig:
    """How the text of an image depends on its camera."""

    # Appended to the prompt, in the order of VIEW_NAMES: front, side, back, overhead.
    suffixes: tuple[str, str, str, str] = (", front view", ", side view", ", back view", ", overhead view")
    front_deg: float = 45.0  # front within this of azimuth 0, back within this of 180; unused by perp-neg
    overhead_deg: float = 60.0  # overhead above this elevation
    # Above 0: azimuth and elevation follow the suffix, to the nearest multiple: ", front view az30 el-10".
    direction_step_deg: int = 0
    negative_prompt: str = ""  # the unconditional branch
    perp_neg: bool = False  # interpolate between views, and push away from the wrong ones
    perp_neg_weight: float = -0.5  # multiplies the weights of the negatives
    # Sentences to push every view away from, besides, and their weights.
    negatives: tuple[str, ...] = ()
    negative_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.suffixes) != NUM_VIEWS:
            raise ValueError(
                f"views.suffixes must be {NUM_VIEWS} texts ({', '.join(VIEW_NAMES)}), "
                f"got {len(self.suffixes)}"
            )
        if not 0 <= self.front_deg <= 90:
            raise ValueError(f"views.front_deg must lie in [0, 90], got {self.front_deg}")
        if not -90 <= self.overhead_deg <= 90:
            raise ValueError(f"views.overhead_deg must lie in [-90, 90], got {self.overhead_deg}")
        if not 0 <= self.direction_step_deg <= 90:
            raise ValueError(f"views.direction_step_deg must lie in [0, 90], got {self.direction_step_deg}")
        if self.direction_step_deg > 0 and self.perp_neg:
            raise ValueError("views.perp_neg mixes whole views: it needs views.direction_step_deg = 0")
        if self.perp_neg_weight > 0:
            raise ValueError(
                f"views.perp_neg_weight must not be positive, got {self.perp_neg_weight}: "
                "a positive weight pulls the image towards the wrong view"
            )

        if len(self.negatives) != len(self.negative_weights):
            raise ValueError(
                f"views.negatives has {len(self.negatives)} sentences and views.negative_weights "
                f"{len(self.negative_weights)} weights: give one weight, negative, for each sentence"
            )
        if any(weight > 0 for weight in self.negative_weights):
            raise ValueError(
                f"views.negative_weights must not be positive, got {list(self.negative_weights)}: "
                "a positive weight pulls the image towards what it should avoid"
            )

    @property
    def num_negatives(self) -> int:
        """Negatives of every image."""
        return 2 * self.perp_neg + len(self.negatives)


def view_words(cameras: Cameras, config: ViewTextConfig) -> list[str]:
    """What is appended to the prompt of each of the P * V images, prompt-major."""
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
    """The word for an azimuth in degrees, any turn of it."""
    return f"az{deg % 360}"


def elevation_word(deg: int) -> str:
    """The word for an elevation in degrees."""
    return f"el{deg}"


@dataclass(frozen=True, kw_only=True)
class ViewText:
    """What a step's B images (prompt-major) are compared with, in words."""

    positive: TextCondition  # B rows
    unconditional: TextCondition  # B rows: the negative prompt
    empty: TextCondition  # B rows: no text at all
    negatives: tuple[TextCondition, ...]  # K conditions of B rows
    negative_weights: Tensor  # [K, B], zero or negative


def take_view_rows(text: ViewText, index: Tensor) -> ViewText:
    """Images `index` [N] (long, on the text's device) of the text."""
    return ViewText(
        positive=take_rows(text.positive, index),
        unconditional=take_rows(text.unconditional, index),
        empty=take_rows(text.empty, index),
        negatives=tuple(take_rows(negative, index) for negative in text.negatives),
        negative_weights=text.negative_weights[:, index],
    )


def plain_text(positive: TextCondition, unconditional: TextCondition) -> ViewText:
    """The text of B images, one row each, and the one unconditional row; nothing to push away from."""
    num_images = len(positive.pooled)
    null = expand_row(unconditional, num_images)
    return ViewText(
        positive=positive,
        unconditional=null,
        empty=null,
        negatives=(),
        negative_weights=positive.pooled.new_zeros(0, num_images),
    )


def with_constants(
    text: ViewText, *, empty: TextCondition, negatives: TextCondition, weights: Sequence[float]
) -> ViewText:
    """The text, its empty sentence (one row), and K negatives more (K rows) alike for all images."""
    num_images = len(text.positive.pooled)
    more = torch.tensor(weights).to(text.negative_weights)[:, None].expand(-1, num_images)
    rows = [take_rows(negatives, torch.tensor([i])) for i in range(len(weights))]
    return replace(
        text,
        empty=expand_row(empty, num_images),
        negatives=text.negatives + tuple(expand_row(row, num_images) for row in rows),
        negative_weights=torch.cat([text.negative_weights, more]),
    )


def mixed_text(
    texts_by_view: TextCondition, unconditional: TextCondition, cameras: Cameras, config: ViewTextConfig
) -> ViewText:
    """The text of each of the B = P * V images between views, by perp-neg: see `_perp_neg`.

    `texts_by_view` has P * 4 rows, row p * 4 + v being prompt p in view v of VIEW_NAMES;
    `unconditional` has one row.
    """
    num_prompts, num_views = cameras.azimuth_deg.shape
    if texts_by_view.pooled.shape[0] != num_prompts * NUM_VIEWS:
        raise ValueError(
            f"texts_by_view must have {NUM_VIEWS} rows for each of {num_prompts} prompts, "
            f"got {texts_by_view.pooled.shape[0]} rows"
        )
    device = texts_by_view.pooled.device
    first_row = NUM_VIEWS * torch.arange(num_prompts, device=device)[:, None]  # [P, 1]

    def pick(view: Tensor) -> TextCondition:  # view [P, V], indices into VIEW_NAMES
        return take_rows(texts_by_view, (first_row + view.to(device)).flatten())

    first, second, share, negatives, weights = _perp_neg(cameras, config)
    null = expand_row(unconditional, num_prompts * num_views)
    return ViewText(
        positive=mix_rows(pick(first), pick(second), share.flatten().to(device)),
        unconditional=null,
        empty=null,
        negatives=tuple(pick(view) for view in negatives),
        negative_weights=weights.flatten(1).to(texts_by_view.pooled),
    )


def _perp_neg(
    cameras: Cameras, config: ViewTextConfig
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """(first, second, share): the positive is share * first + (1 - share) * second, each [P, V];
    then the two negative views [P, V], and their weights [2, P, V].

    The interpolation and constants of Perp-Neg (arXiv 2304.04968) as ScaleDreamer ships them. In
    the front half, with r = 1 - |azimuth| / 90 the share of front, the negatives are front and
    side; in the back half, with r = 2 - |azimuth| / 90 the share of side, they are side and front.
    Overhead images get the plain overhead text and weights of zero.
    """
    azimuth = cameras.azimuth_deg.abs()
    in_front = azimuth < 90
    share = torch.where(in_front, 1 - azimuth / 90, 2 - azimuth / 90)

    def constant(view: int) -> Tensor:
        return torch.full_like(azimuth, view, dtype=torch.long)

    front, side, back = constant(FRONT), constant(SIDE), constant(BACK)
    first, second = torch.where(in_front, front, side), torch.where(in_front, side, back)
    negatives = (torch.where(in_front, front, side), torch.where(in_front, side, front))
    weights = torch.stack(
        [
            torch.where(in_front, _decay(4.0, -2.426, share), _decay(1.0, -0.606, share)),
            torch.where(in_front, _decay(4.0, -2.426, 1 - share), _decay(1.0, 0.967, share)),
        ]
    )
    overhead = cameras.elevation_deg > config.overhead_deg
    first = torch.where(overhead, constant(OVERHEAD), first)
    share = torch.where(overhead, 1.0, share)
    weights = torch.where(overhead, 0.0, config.perp_neg_weight * weights)
    return first, second, share, negatives, weights


def _decay(scale: float, shift: float, x: Tensor) -> Tensor:
    return scale * torch.exp(-0.5 * x) + shift
