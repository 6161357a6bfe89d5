"""Set the weights of an AutoencoderKL encoder so that it computes half-whitened PCA of 4 x 4 patches.

Training an encoder from scratch is too slow for so small a codec (docs/log.md); PCA is exact and in closed
form. Channels are divided by the square root of their standard deviation. With full whitening the weakest
channel (a pattern within a patch) would weigh as much as the strongest (the color), and count 280 times as
much per pixel in the guidance gradient; without whitening it would drown in noise at nearly every timestep.
The layers of an AutoencoderKL can compute PCA exactly:

- both stride-2 convolutions gather 2 x 2 blocks: the first rearranges 3 x 2 x 2 values into 12 channels, the
  second projects 12 x 2 x 2 = 48 values onto the principal directions;
- residual branches end in zero weights, so residual blocks are identities;
- the last group norm is linear up to a relative error of signal^2 / LEVEL^2: each group holds one signal, its
  negative, and six constants +-LEVEL, so its mean is 0 and its variance nearly constant. The SiLU after it
  is linear because of a large OFFSET.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVEL = 100.0  # far above any signal
OFFSET = 24.0  # silu(x) = x to float32 precision around here
LOG_VARIANCE = -8.0  # of the posterior: a standard deviation of 0.018, nearly deterministic


def patches(images: Tensor) -> Tensor:
    """Rearrange images [N, 3, H, W] into 4 x 4 patches [N * H/4 * W/4, 48].

    The 48 values are in the encoder's order: row and column of the 2 x 2 block, row and column within it,
    color.
    """
    n, c, height, width = images.shape
    blocks = images.view(n, c, height // 4, 2, 2, width // 4, 2, 2)  # n c Y by y X bx x
    return blocks.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(-1, 48)


def principal_directions(images: Tensor, count: int) -> tuple[Tensor, Tensor, float]:
    """Half-whitened PCA of the patches of images [N, 3, H, W].

    Returns the mean [48], the projection [count, 48] and the fraction of variance that it retains.
    """
    rows = patches(images).double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    values, vectors = values.flip(0), vectors.flip(1)
    projection = vectors[:, :count].T / values[:count].pow(0.25)[:, None]
    return mean.float(), projection.float(), (values[:count].sum() / values.sum()).item()


@torch.no_grad()
def make_linear(vae, mean: Tensor, projection: Tensor) -> None:
    """Set the weights of the encoder (block_out_channels (16, 32, 64), 8 groups, 8 latent channels) in place.

    mean [48] and projection [count, 48] are those of `principal_directions`.
    """
    encoder, count = vae.encoder, len(projection)
    first, second, third = encoder.down_blocks
    assert vae.config.norm_num_groups == count, "each group of the last norm must carry one channel"
    for block in (first, second, third, encoder.mid_block):
        for residual in block.resnets:
            nn.init.zeros_(residual.conv2.weight)
            nn.init.zeros_(residual.conv2.bias)
    convolutions = [
        encoder.conv_in,
        first.downsamplers[0].conv,
        second.resnets[0].conv_shortcut,
        second.downsamplers[0].conv,
        third.resnets[0].conv_shortcut,
        encoder.conv_out,
        vae.quant_conv,
    ]
    for convolution in convolutions:
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    gather_in, gather_1, widen_2, gather_2, widen_3, out, quant = convolutions
    for color in range(3):
        gather_in.weight[color, color, 1, 1] = 1
        for y in range(2):
            for x in range(2):
                gather_1.weight[(y * 2 + x) * 3 + color, color, y, x] = 1
    for channel in range(12):
        widen_2.weight[channel, channel, 0, 0] = 1
    blocks = projection.view(count, 2, 2, 12)  # by, bx, channel
    gather_2.weight[:count, :12, :2, :2] = blocks.permute(0, 3, 1, 2)
    gather_2.bias[:count] = -projection @ mean
    for group in range(count):
        start = group * 8
        widen_3.weight[start, group, 0, 0] = 1
        widen_3.weight[start + 7, group, 0, 0] = -1
        widen_3.bias[start + 1 : start + 4] = LEVEL
        widen_3.bias[start + 4 : start + 7] = -LEVEL
        out.weight[group, start, 1, 1] = 1
    encoder.conv_norm_out.weight.fill_(LEVEL * 0.75**0.5)
    encoder.conv_norm_out.bias.fill_(OFFSET)
    out.bias[:count] = -OFFSET
    out.bias[count:] = LOG_VARIANCE
    quant.weight.copy_(torch.eye(2 * count)[:, :, None, None])
