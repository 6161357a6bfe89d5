"""Compositing of sorted (pixel, splat) pairs, front to back, with the backward pass written out.

For the pairs k of a pixel, with coverage a_k = opacity exp(-s_k), T_k the product of 1 - a_j over the pairs j
in front, and g the gradient of the pixel's sums of a_k T_k c_k (c: values of the splat, the last one 1):

    s   = (xx dx^2 + yy dy^2) / 2 + xy dx dy                             d: splat minus pixel center
    v_k = c_k . g
    dL/dc_k = a_k T_k g
    dL/da_k = T_k v_k - (sum of a_j T_j v_j over the pairs j behind k) / (1 - a_k)
    dL/ds_k = -a_k dL/da_k                                               0 if a_k is capped

Everything else is a sum over the pairs of a splat: ds gives the opacity's gradient, ds d the position's, and
ds d d^T the inverse covariance's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from amortized.rendering.splats.pairs import ALPHA_MAX, Pairs


class Composite(torch.autograd.Function):
    """Sums [pixels, C + 1] of a_k T_k times the splats' values [S, C] and, last, times 1: the opacity.

    Arguments: means [S, 2], conics [S, 3], opacities [S] and values [S, C] of all splats of all images; the
    pairs; the width of the images; the first row of the pairs' range, and the height of the images.
    """

    @staticmethod
    def forward(ctx, means, conics, opacities, values, pairs: Pairs, first_row: int, height: int, width: int):  # noqa: ANN001, ANN205
        weights = pairs.alphas * pairs.transmittances
        table = torch.cat([values, torch.ones_like(values[:, :1])], dim=-1)
        # A sum of weighted rows per pixel, without a copy of the rows per pair.
        sums = embedding_bag(
            pairs.splats,
            table,
            pairs.starts.int(),
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
        ctx.save_for_backward(
            means, conics, opacities, table,
            pairs.splats, pairs.pixels, pairs.starts, pairs.alphas, pairs.transmittances,
        )  # fmt: skip
        ctx.first_row, ctx.height, ctx.width = first_row, height, width
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        means, conics, opacities, table, splats, pixels, starts, alphas, transmittances = ctx.saved_tensors
        weights = alphas * transmittances  # [M]
        # Channel by channel: columns [M] are read and summed several times faster than rows [M, C].
        pixel_grads = [channel.index_select(0, pixels) for channel in grad.T.contiguous()]
        columns = table.T.contiguous()
        v = torch.zeros_like(weights)
        for column, pixel_grad in zip(columns, pixel_grads, strict=True):
            v.addcmul_(column.index_select(0, splats), pixel_grad)
        # Sums over the pairs behind, as differences of one running sum over all pixels.
        sums = torch.cat([v.new_zeros(1, dtype=torch.float64), (weights * v).double().cumsum(0)])
        behind = sums.index_select(0, starts).index_select(0, pixels + 1) - sums[1:]
        d_alpha = transmittances * v - (behind / (1 - alphas.double())).to(v.dtype)
        ds = torch.where(alphas < ALPHA_MAX, -alphas * d_alpha, 0.0)

        row = pixels // ctx.width
        column = pixels - row * ctx.width
        row = (row + ctx.first_row) % ctx.height
        x, y = means.T.contiguous()
        dx, dy = x.index_select(0, splats) - column - 0.5, y.index_select(0, splats) - row - 0.5
        ds_dx, ds_dy = ds * dx, ds * dy

        def sums_of(values: Tensor) -> Tensor:
            return torch.zeros_like(x).index_add_(0, splats, values)  # [S]

        s, s_x, s_y = sums_of(ds), sums_of(ds_dx), sums_of(ds_dy)
        s_xx, s_xy, s_yy = sums_of(ds_dx * dx), sums_of(ds_dx * dy), sums_of(ds_dy * dy)
        xx, xy, yy = conics.unbind(-1)
        d_means = torch.stack([xx * s_x + xy * s_y, xy * s_x + yy * s_y], dim=-1)
        d_conics = torch.stack([0.5 * s_xx, s_xy, 0.5 * s_yy], dim=-1)
        d_opacities = torch.where(opacities > 0, -s / opacities, 0.0)
        d_values = torch.stack([sums_of(weights * one) for one in pixel_grads[:-1]], dim=-1)
        return d_means, d_conics, d_opacities, d_values, None, None, None, None


def composite(
    means: Tensor, conics: Tensor, opacities: Tensor, values: Tensor, pairs: Pairs,
    *, first_row: int, height: int, width: int,
) -> Tensor:  # fmt: skip
    """Return sums [pixels, C + 1] over a range of rows, see `Composite`. Differentiable once."""
    return Composite.apply(means, conics, opacities, values, pairs, first_row, height, width)
