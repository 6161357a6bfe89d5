"""The list of (pixel, splat) pairs of many images at once, sorted by pixel and then front to back.

The images lie below each other: row r of all images is row r % H of image r // H, and a pixel's number is
r * W + column. Splats of all images have one number too. There is no loop over images, tiles or prompts:
only over ranges of rows, when their pairs would not fit into memory together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.rendering.splats.projection import NEAR, Projection

ALPHA_MIN = 1 / 255  # a pair that covers less of its pixel is dropped
ALPHA_MAX = 0.999  # no pair covers more, so that transmittance stays positive
TRANSMITTANCE_MIN = 1e-4  # a pair that would leave less is dropped, with all that are behind it
# At once, before any is dropped. On a CPU they should fit its cache: 2^18 is up to 1.5 times as fast as 2^22.
# On a GPU the host waits for each part.
MAX_PAIRS = {"cpu": 1 << 18, "cuda": 1 << 22}
WORKING_BYTES = 200  # per pair, for a moment
PAIRS_PER_PIXEL = 15  # that an opaque object covers, whatever the number of its splats


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Bounding boxes of the K splats that may show, front to back; pixel ranges are half open."""

    splats: Tensor  # [K] int32
    left: Tensor  # [K] int32 column
    width: Tensor  # [K] int32
    top: Tensor  # [K] int32 row of all images
    bottom: Tensor  # [K] int32
    image_top: Tensor  # [K] int32 first row of the splat's image
    visible: Tensor  # [P, V, N] bool: which splats these are


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """M pairs in a range of pixels, which are numbered from the range's first one."""

    splats: Tensor  # [M] int32
    pixels: Tensor  # [M] int32, ascending
    starts: Tensor  # [pixels + 1] int64: pixel i has the pairs starts[i] to starts[i + 1]
    alphas: Tensor  # [M] coverage of the pixel
    transmittances: Tensor  # [M] share of the pixel's light that passes all pairs in front


@torch.no_grad()
def boxes_of(projection: Projection, height: int, width: int, *, exact: bool = False) -> Boxes:
    """Return the boxes outside which no pair reaches ALPHA_MIN; with `exact` they are whole images."""
    num_splats = projection.depths.shape[-1]
    depths, opacities = projection.depths.reshape(-1), projection.opacities.reshape(-1)
    means, deviations = projection.means.reshape(-1, 2), projection.deviations.reshape(-1, 2)
    # opacity * exp(-d^2 / 2) = ALPHA_MIN at this Mahalanobis distance d, and an ellipse's box has sides of d
    # standard deviations.
    reach = (2 * torch.log(opacities / ALPHA_MIN)).clamp(min=0).sqrt()[:, None] * deviations
    sizes = means.new_tensor([width, height])
    low = (means - reach - 0.5).ceil().clamp(min=torch.zeros_like(sizes), max=sizes)
    high = ((means + reach - 0.5).floor() + 1).clamp(min=torch.zeros_like(sizes), max=sizes)
    shows = (depths > NEAR) & (opacities >= ALPHA_MIN)
    if exact:
        low, high, shows = torch.zeros_like(low), sizes.expand_as(high), depths > NEAR
    shows &= (high > low).all(-1)
    order = torch.where(shows, depths, torch.inf).sort(stable=True).indices[: int(shows.sum())]
    low, high = (corner[order].int() for corner in (low, high))
    image_top = (order // num_splats * height).int()
    return Boxes(
        splats=order.int(),
        left=low[:, 0].contiguous(),
        width=high[:, 0] - low[:, 0],
        top=image_top + low[:, 1],
        bottom=image_top + high[:, 1],
        image_top=image_top,
        visible=shows.view(projection.depths.shape),
    )


@torch.no_grad()
def row_ranges(boxes: Boxes, num_rows: int, max_pairs: int) -> list[tuple[int, int]]:
    """Divide the rows of all images into ranges whose boxes have at most `max_pairs` pixels each.

    A single row may have more.
    """
    edges = torch.zeros(num_rows + 1, dtype=torch.int64, device=boxes.top.device)
    edges.index_add_(0, boxes.top, boxes.width.long()).index_add_(0, boxes.bottom, -boxes.width.long())
    total = edges.cumsum(0)[:-1].cumsum(0).cpu()  # [rows] pairs up to and including a row
    ranges, start, before = [], 0, 0
    while start < num_rows:
        end = int(torch.searchsorted(total, before + max_pairs, right=True))
        end = max(end, start + 1)
        ranges.append((start, end))
        start, before = end, int(total[end - 1])
    return ranges


@torch.no_grad()
def pairs_in(
    rows: tuple[int, int], boxes: Boxes, projection: Projection, width: int, *, exact: bool = False
) -> Pairs:
    """Return the pairs in a range of rows: those that cover ALPHA_MIN, up to where a pixel is opaque.

    With `exact`, no pair is dropped.
    """
    device = boxes.top.device
    num_pixels = (rows[1] - rows[0]) * width
    here = (boxes.bottom > rows[0]) & (boxes.top < rows[1])
    numbers, left, widths, top, bottom, image_top = _select(
        here, boxes.splats, boxes.left, boxes.width, boxes.top, boxes.bottom, boxes.image_top
    )
    top, bottom = top.clamp(min=rows[0]), bottom.clamp(max=rows[1])
    counts = (bottom - top).long() * widths
    ends = counts.cumsum(0)
    # 1. All pixels of all boxes, box by box.
    box = torch.arange(len(counts), dtype=torch.int32, device=device).repeat_interleave(counts)
    local = torch.arange(len(box), dtype=torch.int32, device=device)
    local -= (ends - counts).int().index_select(0, box)
    box_width = widths.index_select(0, box)
    row = local // box_width
    column = local - row * box_width + left.index_select(0, box)
    row += top.index_select(0, box)

    # 2. Their coverage. Positions count from the splat's image: numbers of all images would be rounded.
    def at_pairs(values: Tensor) -> Tensor:  # of all splats => [M]
        return values.reshape(-1).index_select(0, numbers).index_select(0, box)

    x, y = projection.means.unbind(-1)
    xx, xy, yy = (at_pairs(entry) for entry in projection.conics.unbind(-1))
    dx = at_pairs(x) - column - 0.5
    dy = at_pairs(y) - (row - image_top.index_select(0, box)) - 0.5
    power = -0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy
    opacities = at_pairs(projection.opacities)
    splats = numbers.index_select(0, box)
    alphas = (opacities * power.exp()).clamp(max=ALPHA_MAX)
    pixels = (row - rows[0]) * width + column
    # 3. By pixel; boxes are front to back, and a stable sort preserves that.
    if not exact:
        splats, pixels, alphas = _select(alphas >= ALPHA_MIN, splats, pixels, alphas)
    pixels, by_pixel = pixels.sort(stable=True)
    splats, alphas = splats.index_select(0, by_pixel), alphas.index_select(0, by_pixel)
    starts = starts_of(pixels, num_pixels)
    transmittances = transmittances_of(alphas, pixels, starts)
    # 4. Up to the pair that makes the pixel opaque. The rest has no effect on the transmittances in front.
    if not exact:
        passes = transmittances * (1 - alphas) > TRANSMITTANCE_MIN
        splats, pixels, alphas, transmittances = _select(passes, splats, pixels, alphas, transmittances)
        starts = starts_of(pixels, num_pixels)
    return Pairs(splats=splats, pixels=pixels, starts=starts, alphas=alphas, transmittances=transmittances)


def expected_pairs(num_pixels: int, like: Tensor) -> Pairs:
    """Return pairs of no meaning, in the number that an object which fills its image typically has.

    For fake tensors: they have no values, so their pairs cannot be counted.
    """
    number = PAIRS_PER_PIXEL * num_pixels
    like.new_empty(min(number, MAX_PAIRS["cuda"]) * WORKING_BYTES // like.element_size())  # for a moment
    index = {"dtype": torch.int32, "device": like.device}
    return Pairs(
        splats=torch.empty(number, **index),
        pixels=torch.empty(number, **index),
        starts=torch.empty(num_pixels + 1, dtype=torch.int64, device=like.device),
        alphas=like.new_empty(number),
        transmittances=like.new_empty(number),
    )


def starts_of(pixels: Tensor, num_pixels: int) -> Tensor:
    """Return where each pixel's pairs begin, and their number [num_pixels + 1], for ascending pixels [M]."""
    counts = torch.zeros(num_pixels + 1, dtype=torch.int64, device=pixels.device)
    counts.index_add_(0, pixels + 1, torch.ones_like(pixels, dtype=torch.int64))
    return counts.cumsum(0)


def transmittances_of(alphas: Tensor, pixels: Tensor, starts: Tensor) -> Tensor:
    """Return the share of light [M] that passes all pairs of the same pixel in front of each.

    A running sum of logarithms over all pixels, minus its value at the pixel's start. In float32 the sum of a
    million pairs, about -1e5, would be rounded to 2^-7.
    """
    logs = torch.log1p(-alphas.double())
    sums = torch.cat([logs.new_zeros(1), logs.cumsum(0)])  # of all pairs before
    at_start = sums.index_select(0, starts).index_select(0, pixels)
    return (sums[:-1] - at_start).exp().to(alphas.dtype)


def _select(wanted: Tensor, *columns: Tensor) -> list[Tensor]:
    index = wanted.nonzero().squeeze(1)
    return [column.index_select(0, index) for column in columns]
