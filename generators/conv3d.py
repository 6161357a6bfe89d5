"""3DConv-net: a StyleGAN of volumes. Text (and z) modulate 3D convolutions that grow 4^3 to 128^3.

ScaleDreamer (arXiv 2407.02040), after CC3D (arXiv 2303.12074) and StyleGAN2 (arXiv 1912.04958):

    w = A [text ; mapping(z)]                                     one style a prompt
    x = constant 4^3; at each further resolution x = style_conv(style_conv(x) upsampled + volume)
    f = sum of the resolutions' 1^3 projections, upsampled        32 x 128^3 a prompt
    sdf(x) = head_sdf(f(x)) + |x| - sphere_radius                 albedo(x) = sigmoid(head_rgb(f(x)))

The features of a point are interpolated from its own prompt's volume, within the cube
[-bounding_radius, bounding_radius]^3.

Sizes as published (width 1): 88.7 M parameters, of which 44.3 M are learned constant volumes and
42.4 M convolutions; one forward costs 550 G multiply-adds and holds a volume of 268 MB a prompt in
float32. Width 2: 144.8 M parameters, 2,049 G multiply-adds.

z has two roles: half of the style, and the key of the noise volumes that StyleGAN adds. The same
z gives the same scene, on any number of processes and after any resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from amortized.encodings import BiasFreeMLP
from amortized.types import TextCondition
from generators.epilogue import SLOPE, leaky_clamped
from generators.field import FeatureField, check_sizes, checked_z

GAIN = math.sqrt(2)  # restores the second moment after a leaky ReLU of slope 0.2, nearly
LAYOUT = torch.channels_last_3d  # of volumes: convolutions and interpolation are 1.5 to 8 times as fast


@dataclass(frozen=True, kw_only=True)
class Conv3DConfig:
    """Sizes of the generator; the default is the published width 1."""

    name: Literal["3dconv-net"] = "3dconv-net"
    resolution: int = 128  # of the finest volume, a power of two from 8
    base_channels: int = 512  # up to 16^3
    width: float = 1.0  # of the finer resolutions: 256, 128, 64 channels at 32^3, 64^3, 128^3, times width
    num_features: int = 32  # of a point
    z_dim: int = 64
    style_dim: int = 256
    hidden: tuple[int, ...] = (64,)  # hidden widths of the two heads
    sphere_radius: float = 0.8  # of the ball that every prompt starts as
    bounding_radius: float = 1.0
    checkpointing: bool = False  # recompute each resolution in the backward pass instead of storing it
    compile: bool = False  # torch.compile each resolution: minutes at the start, faster steps on a GPU

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"generator resolution must be a power of two from 8, got {self.resolution}")
        check_sizes(
            self.hidden, self.sphere_radius, self.bounding_radius,
            base_channels=self.base_channels, num_features=self.num_features,
            z_dim=self.z_dim, style_dim=self.style_dim,
        )  # fmt: skip
        if self.channels(self.resolution) < 1:
            raise ValueError(f"generator width {self.width} leaves no channel at {self.resolution}^3")

    def channels(self, resolution: int) -> int:
        """Channels of the volume at a resolution: halved at each doubling beyond 16^3."""
        if resolution <= 16:
            return self.base_channels
        return int(self.width * self.base_channels * 16 / resolution)

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ..., resolution."""
        return [4 << i for i in range(int(math.log2(self.resolution)) - 1)]

    def build(self, text_dim: int) -> Conv3DNet:
        """The untrained generator, for text of width `text_dim`."""
        return Conv3DNet(self, text_dim)


class Conv3DNet(nn.Module):
    """Text of width `text_dim` and z [P, z_dim] to P scenes; without z, all prompts share z = 0."""

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
        """Scenes of text.pooled [P, D] and z [P, z_dim], standard normal.

        Raises ValueError where z has another shape.
        """
        pooled = text.pooled
        z = checked_z(z, len(pooled), self.z_dim, pooled)
        style = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.mapping:
            style = functional.leaky_relu(layer(style), SLOPE) * GAIN
        style = self.join(torch.cat([pooled, style], dim=1))
        features = self._volumes(style, z)
        return FeatureField(
            features=partial(read_volume, features.to(self.constant.dtype)),
            head_sdf=self.head_sdf,
            head_rgb=self.head_rgb,
            sphere_radius=self.config.sphere_radius,
            bounding_radius=self.config.bounding_radius,
        )

    def _volumes(self, style: Tensor, z: Tensor) -> Tensor:
        """Features [P, F, R, R, R] of styles [P, style_dim] and z [P, z_dim].

        Where a prompt's kernels have fewer elements than its volumes, the stages run prompt by prompt:
        they cost the same, and no volume is scaled.
        """
        num_prompts = len(style)
        x = self.constant.expand(num_prompts, -1, -1, -1, -1)
        features = x.new_zeros(num_prompts, self.config.num_features, 2, 2, 2)  # summed in float32
        shared = sum(not stage.by_prompt for stage in self.stages)
        x, features = self._grown(self.stages[:shared], x, features, style, z)
        inputs = (t.split(1) for t in (x, features, style, z))
        volumes = [self._grown(self.stages[shared:], *each)[1] for each in zip(*inputs, strict=True)]
        features = volumes[0] if num_prompts == 1 else torch.cat(volumes)
        if features.requires_grad:  # reading points makes a gradient in the usual layout
            features.register_hook(lambda grad: grad.contiguous(memory_format=LAYOUT))
        return features

    def _grown(
        self, stages: Iterable[nn.Module], x: Tensor, features: Tensor, style: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x and features after these stages."""
        for stage in stages:
            if self.config.checkpointing and torch.is_grad_enabled():
                x, features = checkpoint(stage, x, features, style, z, use_reentrant=False)
            else:
                x, features = stage(x, features, style, z)
        return x, features


def read_volume(volume: Tensor, points: Tensor) -> Tensor:
    """Features [P, N, F] at points [P, N, 3] in [-1, 1], from volumes [P, F, R, R, R] with axes z, y, x.

    Interpolated from each prompt's own volume; zero outside the cube.
    """
    where = points[:, :, None, None]  # [P, N, 1, 1, 3]
    found = functional.grid_sample(volume, where, padding_mode="zeros", align_corners=False)
    return found[..., 0, 0].mT


class _Stage(nn.Module):
    """One resolution: a convolution that doubles it (but at 4^3), one that keeps it, a projection."""

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
        self.by_prompt = 27 * after < resolution**3  # fewer elements in kernels than in volumes

    def forward(self, x: Tensor, features: Tensor, style: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.grow is not None:
            x = self.grow(x, style, z)
        if self.volume is not None:
            x = x + self.volume.to(x.dtype)
        x = self.keep(x, style, z)
        return x, _double(features) + self.project(x, style)


class _StyleConv(nn.Module):
    """Convolution 3^3 whose input channels the style scales, normalized to unit variance; then noise,
    bias and leaky ReLU.

    Scaling the kernels of each prompt (StyleGAN2, section 2.2) is the same as scaling the input and
    normalizing the output. Which is done depends on which has fewer elements.
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
        scale = self.affine(style)  # [P, in]
        power = scale.square() @ self.weight.square().sum(dim=(2, 3, 4)).T  # [P, out]
        # The gain comes before the leaky ReLU, which is the same: it is positive.
        norm = GAIN * (power + 1e-8).rsqrt()
        if len(x) == 1 and self.weight[:, 0].numel() < x[0, 0].numel():
            kernel = self.weight * scale[0, :, None, None, None] * norm[0, :, None, None, None, None]
            x = _convolved(x, kernel, padding=1)
        else:
            x = _convolved(_scaled(x, scale), self.weight, padding=1)
            x = _scaled(x, norm)
        x = _double(x) if self.upsample else x
        noise = _noise(z, self.resolution, self.noise_strength)
        return leaky_clamped(x, GAIN * self.noise_strength * noise, GAIN * self.bias)


class _StyleProjection(nn.Module):
    """Convolution 1^3 whose input channels the style scales, with a bias and nothing else."""

    def __init__(self, channels_in: int, channels_out: int, style: int) -> None:
        super().__init__()
        self.affine = _Dense(style, channels_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale = self.affine(style) / math.sqrt(self.weight.shape[1])
        if len(x) == 1:
            return _convolved(x, self.weight * scale[0, :, None, None, None], self.bias)
        return _convolved(_scaled(x, scale), self.weight, self.bias)


class _Dense(nn.Module):
    """Linear layer with an equalized learning rate: unit-variance weights, scaled when used."""

    def __init__(self, width_in: int, width_out: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in))
        self.bias = nn.Parameter(torch.full((width_out,), bias))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


def _convolved(x: Tensor, kernel: Tensor, bias: Tensor | None = None, *, padding: int = 0) -> Tensor:
    """x [P, in, R, R, R] through kernel [out, in, k, k, k], in the layout of volumes."""
    x, kernel = (t.contiguous(memory_format=LAYOUT) for t in (x, kernel))
    bias = None if bias is None else bias.to(x.dtype)
    return functional.conv3d(x, kernel.to(x.dtype), bias, padding=padding)


def _scaled(x: Tensor, by: Tensor) -> Tensor:
    """x [P, C, R, R, R] times by [P, C], in the type of x."""
    return x * by.to(x.dtype)[:, :, None, None, None]


def _double(x: Tensor) -> Tensor:
    """Twice the resolution, trilinear, corners kept in place."""
    return functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)


def _noise(z: Tensor, resolution: int, like: Tensor) -> Tensor:
    """Standard normal volumes [P, 1, R, R, R], a function of z's bits, the resolution and the place.

    By hashing instead of a random stream: the same on every device, without waiting for any.
    """
    bits = z.detach().float().contiguous().view(torch.int32).long()  # [P, z_dim]
    seeds = _scramble(bits + torch.arange(bits.shape[1], device=z.device) * 2**32).sum(dim=1) + resolution
    places = torch.arange(resolution**3, device=z.device)
    mixed = _scramble(_scramble(seeds)[:, None] + places)  # [P, R^3]
    # 24 bits for the radius, never 0, and 24 others for the angle (Box and Muller).
    radius = (mixed >> 40).bitwise_and_(0xFFFFFF).add_(1).float().div_(2**24).log_().mul_(-2).sqrt_()
    angle = mixed.bitwise_and_(0xFFFFFF).float().mul_(2 * math.pi / 2**24).cos_()
    return radius.mul_(angle).view(-1, 1, *[resolution] * 3).to(like.dtype)


def _scramble(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers whose output looks random: the finalizer of SplitMix64."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed number
    x ^= (x >> 30).bitwise_and_(0x3FFFFFFFF)
    x *= -4658895280553007687  # 0xBF58476D1CE4E5B9
    x ^= (x >> 27).bitwise_and_(0x1FFFFFFFFF)
    x *= -7723592293110705685  # 0x94D049BB133111EB
    return x.bitwise_xor_((x >> 31).bitwise_and_(0x1FFFFFFFF))
