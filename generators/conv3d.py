"""3DConv-net, a 3D StyleGAN: text and z modulate convolutions on volumes that grow from 4^3 to 128^3.

ScaleDreamer (arXiv 2407.02040), after CC3D (arXiv 2303.12074) and StyleGAN2 (arXiv 1912.04958):

    w = A [text ; mapping(z)]                                     one style per prompt
    x = constant 4^3; at each further resolution x = style_conv(style_conv(x) upsampled + volume)
    f = sum of the resolutions' 1^3 projections, upsampled        32 x 128^3 per prompt
    sdf(x) = head_sdf(f(x)) + |x| - sphere_radius                 albedo(x) = sigmoid(head_rgb(f(x)))

The features of a point are interpolated from the volume of its prompt, which covers the cube
[-bounding_radius, bounding_radius]^3.

The published size (width 1) has 88.7 M parameters: 44.3 M in learned constant volumes and 42.4 M in
convolutions. A forward pass costs 550 G multiply-adds per prompt; the largest volume takes 268 MB per prompt
in float32. Width 2 has 144.8 M parameters and costs 2,049 G multiply-adds.

z is mapped to half of the style's input, and it seeds the noise volumes that StyleGAN adds. The same z gives
the same scene, for any number of processes and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from amortized.config import check
from amortized.encodings import BiasFreeMLP
from amortized.types import TextCondition
from generators.epilogue import SLOPE, leaky_clamped
from generators.field import FeatureField, PerPrompt, check_sizes, checked_z

GAIN = math.sqrt(2)  # approximately restores the second moment after a leaky ReLU of slope 0.2
LAYOUT = torch.channels_last_3d  # convolutions and interpolation are 1.5 to 8 times as fast


@dataclass(frozen=True, kw_only=True)
class Conv3DConfig:
    """Sizes of the generator; the defaults are the published ones of width 1."""

    name: Literal["3dconv-net"] = "3dconv-net"
    resolution: int = 128  # of the finest volume, a power of two of at least 8
    base_channels: int = 512  # channels up to 16^3
    width: float = 1.0  # scales the 256, 128 and 64 channels at 32^3, 64^3 and 128^3
    num_features: int = 32  # channels of the volume that points are interpolated from
    z_dim: int = 64
    style_dim: int = 256
    hidden: tuple[int, ...] = (64,)  # hidden widths of the two heads
    sphere_radius: float = 0.8  # of the sphere that every prompt starts from
    bounding_radius: float = 1.0
    checkpointing: bool = False  # recompute each resolution in the backward pass instead of storing it
    compile: bool = False  # torch.compile each resolution: minutes at the start, faster steps on a GPU

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution must be a power of two of at least 8, got {self.resolution}")
        check(self, "resolution", limit=1024)
        check(self, "width", above=0, limit=64)
        check_sizes(self, "hidden", "base_channels", "num_features", "z_dim", "style_dim")
        if self.channels(self.resolution) < 1:
            raise ValueError(f"width must leave a channel at {self.resolution}^3, got {self.width}")

    def channels(self, resolution: int) -> int:
        """Return the channels at a resolution, which halve with each doubling beyond 16^3."""
        if resolution <= 16:
            return self.base_channels
        return int(self.width * self.base_channels * 16 / resolution)

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ..., resolution."""
        return [4 << i for i in range(int(math.log2(self.resolution)) - 1)]

    def build(self, text_dim: int) -> Conv3DNet:
        """Build the untrained generator for text embeddings of width `text_dim`."""
        return Conv3DNet(self, text_dim)


class Conv3DNet(nn.Module):
    """Map text embeddings of width `text_dim` and z [P, z_dim] to P scenes; without z, z = 0."""

    def __init__(self, config: Conv3DConfig, text_dim: int) -> None:
        super().__init__()
        self.config, self.z_dim = config, config.z_dim
        style = config.style_dim
        self.mapping = nn.ModuleList([_Dense(config.z_dim, style), _Dense(style, style)])
        self.join = _Dense(text_dim + style, style)
        self.constant = nn.Parameter(torch.randn(1, config.base_channels, 4, 4, 4))
        widths = [config.channels(resolution) for resolution in config.resolutions]
        self.stages = nn.ModuleList(
            _Stage(before, after, resolution, config)
            for before, after, resolution in zip(
                [None, *widths[:-1]], widths, config.resolutions, strict=True
            )
        )
        if config.compile:
            for stage in self.stages:
                stage.compile(dynamic=False)
        self.head_sdf = BiasFreeMLP((config.num_features, *config.hidden, 1))
        self.head_rgb = BiasFreeMLP((config.num_features, *config.hidden, 3))

    def forward(self, text: TextCondition, z: Tensor | None = None) -> FeatureField:
        """Return P scenes for text.pooled [P, D] and z [P, z_dim], standard normal.

        Raises ValueError if z has another shape.
        """
        pooled = text.pooled
        z = checked_z(z, len(pooled), self.z_dim, pooled)
        # Unit second moment, as StyleGAN's mapping network normalizes its input.
        style = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.mapping:
            style = functional.leaky_relu(layer(style), SLOPE) * GAIN
        style = self.join(torch.cat([pooled, style], dim=1))  # [P, style_dim]
        features = self._volumes(style, z)  # [P, F, R, R, R]
        return FeatureField(
            features=PerPrompt(read_volume, [features.to(self.constant.dtype)]),
            head_sdf=self.head_sdf,
            head_rgb=self.head_rgb,
            num_prompts=len(pooled),
            sphere_radius=self.config.sphere_radius,
            bounding_radius=self.config.bounding_radius,
        )

    def _volumes(self, style: Tensor, z: Tensor) -> Tensor:
        """Return feature volumes [P, F, R, R, R] for styles [P, style_dim] and z [P, z_dim]."""
        num_prompts = len(style)
        x = self.constant.expand(num_prompts, -1, -1, -1, -1)
        features = x.new_zeros(num_prompts, self.config.num_features, 2, 2, 2)  # summed in float32
        # Coarse stages run batched. At fine resolutions, a prompt's kernels have fewer elements than its
        # volume: prompt by prompt, the style scales kernels, not volumes, and convolutions cost the same.
        num_batched = sum(not stage.by_prompt for stage in self.stages)
        x, features = self._run_stages(self.stages[:num_batched], x, features, style, z)
        inputs = (values.split(1) for values in (x, features, style, z))
        volumes = [
            self._run_stages(self.stages[num_batched:], *prompt)[1] for prompt in zip(*inputs, strict=True)
        ]
        features = volumes[0] if num_prompts == 1 else torch.cat(volumes)
        if features.requires_grad:  # the gradient of grid_sample is in the default layout
            features.register_hook(lambda grad: grad.contiguous(memory_format=LAYOUT))
        return features

    def _run_stages(
        self, stages: Iterable[nn.Module], x: Tensor, features: Tensor, style: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run stages on x [P, C, r, r, r] and summed features [P, F, r, r, r]; return both after the last."""
        for stage in stages:
            if self.config.checkpointing and torch.is_grad_enabled():
                x, features = checkpoint(stage, x, features, style, z, use_reentrant=False)
            else:
                x, features = stage(x, features, style, z)
        return x, features


def read_volume(points: Tensor, volume: Tensor) -> Tensor:
    """Interpolate features [P, N, F] at points [P, N, 3] in [-1, 1]; zero outside the cube.

    volume: [P, F, R, R, R] with axes z, y, x; a prompt's points read its volume only.
    """
    grid = points[:, :, None, None]  # [P, N, 1, 1, 3]
    features = functional.grid_sample(volume, grid, padding_mode="zeros", align_corners=False)
    return features[..., 0, 0].mT


class _Stage(nn.Module):
    """One resolution: an upsampling convolution (except at 4^3), a convolution, and a projection."""

    def __init__(self, before: int | None, after: int, resolution: int, config: Conv3DConfig) -> None:
        super().__init__()
        style, finest = config.style_dim, resolution == config.resolution
        self.grow = (
            None if before is None else _StyleConv(before, after, style, resolution=resolution, upsample=True)
        )
        shape = (1, after, *[resolution] * 3)
        self.volume = None if before is None or finest else nn.Parameter(torch.randn(shape))
        self.keep = _StyleConv(after, after, style, resolution=resolution)
        self.project = _StyleProjection(after, config.num_features, style)
        self.by_prompt = 27 * after < resolution**3  # kernels have fewer elements than volumes

    def forward(self, x: Tensor, features: Tensor, style: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x [P, after, R, R, R] and features [P, F, R, R, R] at this resolution R.

        x: [P, before, r, r, r] with r = R / 2, or [P, after, 4, 4, 4] in the first stage. features: the sum
        so far [P, F, R / 2, R / 2, R / 2]. style: [P, style_dim]. z: [P, z_dim].
        """
        if self.grow is not None:
            x = self.grow(x, style, z)
        if self.volume is not None:
            x = x + self.volume.to(x.dtype)
        x = self.keep(x, style, z)
        return x, _upsample(features) + self.project(x, style)


class _StyleConv(nn.Module):
    """Modulated 3^3 convolution, normalized to unit variance, then noise, bias and leaky ReLU.

    Scaling each prompt's kernels (StyleGAN2, section 2.2) equals scaling the input channels and normalizing
    the output channels; the cheaper of the two is used.
    """

    def __init__(
        self, channels_in: int, channels_out: int, style: int, *, resolution: int, upsample: bool = False
    ) -> None:
        super().__init__()
        self.resolution, self.upsample = resolution, upsample
        self.affine = _Dense(style, channels_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, 3, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
        """Map x [P, in, r, r, r] to [P, out, R, R, R], with R = 2 r if upsampling, else r.

        style: [P, style_dim]. z: [P, z_dim], the key of the noise.
        """
        scale = self.affine(style)  # [P, in]
        power = scale.square() @ self.weight.square().sum(dim=(2, 3, 4)).T  # [P, out]
        # A positive gain commutes with the leaky ReLU, so it is applied here.
        norm = GAIN * (power + 1e-8).rsqrt()
        if len(x) == 1 and self.weight[:, 0].numel() < x[0, 0].numel():
            kernel = self.weight * scale[0, :, None, None, None] * norm[0, :, None, None, None, None]
            x = _convolve(x, kernel, padding=1)
        else:
            x = _convolve(_scale_channels(x, scale), self.weight, padding=1)
            x = _scale_channels(x, norm)
        x = _upsample(x) if self.upsample else x
        noise = _noise(z, self.resolution, self.noise_strength)
        return leaky_clamped(x, GAIN * self.noise_strength * noise, GAIN * self.bias)


class _StyleProjection(nn.Module):
    """Modulated 1^3 convolution with bias, without normalization, noise or activation."""

    def __init__(self, channels_in: int, channels_out: int, style: int) -> None:
        super().__init__()
        self.affine = _Dense(style, channels_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map x [P, in, R, R, R] and style [P, style_dim] to [P, out, R, R, R]."""
        scale = self.affine(style) / math.sqrt(self.weight.shape[1])
        if len(x) == 1:
            return _convolve(x, self.weight * scale[0, :, None, None, None], self.bias)
        return _convolve(_scale_channels(x, scale), self.weight, self.bias)


class _Dense(nn.Module):
    """Linear layer with an equalized learning rate: unit-variance weights, scaled at run time."""

    def __init__(self, width_in: int, width_out: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in))
        self.bias = nn.Parameter(torch.full((width_out,), bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [P, in] to [P, out]."""
        return functional.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None, *, padding: int = 0) -> Tensor:
    """Convolve x [P, in, R, R, R] with kernel [out, in, k, k, k], in LAYOUT."""
    x, kernel = (t.contiguous(memory_format=LAYOUT) for t in (x, kernel))
    bias = None if bias is None else bias.to(x.dtype)
    return functional.conv3d(x, kernel.to(x.dtype), bias, padding=padding)


def _scale_channels(x: Tensor, scale: Tensor) -> Tensor:
    """Multiply x [P, C, R, R, R] by scale [P, C], in the dtype of x."""
    return x * scale.to(x.dtype)[:, :, None, None, None]


def _upsample(x: Tensor) -> Tensor:
    """Double the resolution of x [P, C, R, R, R] trilinearly, with corners aligned."""
    return functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)


def _noise(z: Tensor, resolution: int, like: Tensor) -> Tensor:
    """Return standard normal volumes [P, 1, R, R, R], a function of the bits of z [P, z_dim] and R.

    Hashing instead of a random stream gives the same values on every device, without synchronization.
    """
    bits = z.detach().float().contiguous().view(torch.int32).long()  # [P, z_dim]
    seeds = _scramble(bits + torch.arange(bits.shape[1], device=z.device) * 2**32).sum(dim=1) + resolution
    cells = torch.arange(resolution**3, device=z.device)
    mixed = _scramble(_scramble(seeds)[:, None] + cells)  # [P, R^3]
    # Box-Muller: 24 bits for the radius, shifted to be positive, and 24 others for the angle.
    radius = (mixed >> 40).bitwise_and_(0xFFFFFF).add_(1).float().div_(2**24).log_().mul_(-2).sqrt_()
    angle = mixed.bitwise_and_(0xFFFFFF).float().mul_(2 * math.pi / 2**24).cos_()
    return radius.mul_(angle).view(-1, 1, *[resolution] * 3).to(like.dtype)


def _scramble(x: Tensor) -> Tensor:
    """Hash int64 values with the finalizer of SplitMix64, a bijection."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
    x ^= (x >> 30).bitwise_and_(0x3FFFFFFFF)
    x *= -4658895280553007687  # 0xBF58476D1CE4E5B9
    x ^= (x >> 27).bitwise_and_(0x1FFFFFFFFF)
    x *= -7723592293110705685  # 0x94D049BB133111EB
    return x.bitwise_xor_((x >> 31).bitwise_and_(0x1FFFFFFFF))
