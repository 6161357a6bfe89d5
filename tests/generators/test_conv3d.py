"""3DConv-net: published sizes, the modulated convolution against per-prompt kernels, and z."""

import pytest
import torch
from torch.nn import functional

from amortized.conditioning import expand_row
from amortized.types import Scene
from generators.conv3d import Conv3DConfig, Conv3DNet, _noise, _scramble, _StyleConv, read_volume
from tests.generators.helpers import TEXT_DIM, perturb, texts

TINY = Conv3DConfig(resolution=16, base_channels=6, num_features=5, z_dim=4, style_dim=8, hidden=(7,))


def volume_of(scene: Scene) -> torch.Tensor:
    """Return the feature volumes [P, F, R, R, R] of a scene."""
    return scene.features.rows[0]


@pytest.mark.parametrize(("width", "total", "volumes"), [(1, 88.7, 44.3), (2, 144.8, 86.2)])
def test_published_parameter_counts(width: int, total: float, volumes: float):
    with torch.device("meta"):
        generator = Conv3DNet(Conv3DConfig(width=width), 1024)
    counts = {name: p.numel() for name, p in generator.named_parameters()}
    assert round(sum(counts.values()) / 1e6, 1) == total
    assert round(sum(n for name, n in counts.items() if name.endswith("volume")) / 1e6, 1) == volumes


def test_every_prompt_starts_as_mid_gray_sphere():
    torch.manual_seed(0)
    scene = Conv3DNet(TINY, TEXT_DIM)(texts(3))
    assert isinstance(scene, Scene) and volume_of(scene).shape == (3, 5, 16, 16, 16)
    points = (2 * torch.rand(3, 50, 3) - 1) / 3**0.5
    sdf, albedo = scene.sdf_and_albedo(points)
    torch.testing.assert_close(sdf, points.norm(dim=-1) - 0.8, rtol=0, atol=0.06)
    torch.testing.assert_close(albedo, torch.full_like(albedo, 0.5), rtol=0, atol=0.02)


@pytest.mark.parametrize("upsample", [False, True])
def test_style_convolution_equals_per_prompt_kernels(upsample: bool):
    """StyleGAN2, equations 1 and 3, prompt by prompt in float64."""
    torch.manual_seed(0)
    layer = _StyleConv(3, 4, 5, resolution=6, upsample=upsample).double()
    layer.bias.data.normal_()
    resolution = 3 if upsample else 6
    x = torch.randn(2, 3, *[resolution] * 3).double()
    style = torch.randn(2, 5).double()
    actual = layer(x, style, torch.zeros(2, 1))
    for p in range(2):
        scale = style[p] @ layer.affine.weight.T / 5**0.5 + layer.affine.bias
        kernel = layer.weight * scale[None, :, None, None, None]
        kernel = kernel / (kernel.square().sum(dim=(1, 2, 3, 4), keepdim=True) + 1e-8).sqrt()
        y = functional.conv3d(x[p][None], kernel, padding=1)
        if upsample:
            y = functional.interpolate(y, size=(6, 6, 6), mode="trilinear", align_corners=True)
        y = y + layer.bias[None, :, None, None, None]
        y = torch.where(y > 0, y, 0.2 * y) * 2**0.5
        torch.testing.assert_close(actual[p], y[0])


def test_point_reads_its_position():
    """A volume whose features are its cell centers returns the points themselves."""
    centers = (torch.arange(16) + 0.5) / 8 - 1
    z, y, x = torch.meshgrid(centers, centers, centers, indexing="ij")
    volume = torch.stack([torch.stack([x, y, z]), torch.stack([-x, -y, -z])])
    points = (2 * torch.rand(2, 40, 3) - 1) * 0.9
    expected = points * torch.tensor([1.0, -1.0])[:, None, None]
    torch.testing.assert_close(read_volume(points, volume), expected, rtol=0, atol=1e-5)


def test_scene_is_function_of_z():
    torch.manual_seed(0)
    generator, text = perturb(Conv3DNet(TINY, TEXT_DIM)), expand_row(texts(1), 3)
    z = torch.randn(2, 4)
    with torch.no_grad():
        first, repeated, other = volume_of(generator(text, z[[0, 0, 1]]))
        without = volume_of(generator(text))
    torch.testing.assert_close(first, repeated)
    torch.testing.assert_close(without[0], without[1])
    assert not torch.allclose(first, other, atol=1e-2)


def test_noise_differs_between_prompts_and_starts_at_zero():
    torch.manual_seed(0)
    generator, text = Conv3DNet(TINY, TEXT_DIM), expand_row(texts(1), 2)
    # Nearly the same style, but other bits, which seed the noise.
    similar_z = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.000001, 0.0, 0.0, 0.0]])
    with torch.no_grad():
        without_noise = volume_of(generator(text, similar_z))
        torch.testing.assert_close(without_noise[0], without_noise[1], rtol=0, atol=1e-4)
        for stage in generator.stages:
            stage.keep.noise_strength.fill_(0.5)
        with_noise = volume_of(generator(text, similar_z))
    assert (with_noise[0] - with_noise[1]).abs().mean() > 0.05


def test_noise_is_standard_normal_and_uncorrelated():
    z = torch.randn(3, 8)
    noise = torch.cat([_noise(z, 32, z).flatten(1), _noise(z, 16, z).flatten(1)], dim=1)  # [3, 36864]
    torch.testing.assert_close(noise.mean(dim=1), torch.zeros(3), rtol=0, atol=0.02)
    torch.testing.assert_close(noise.square().mean(dim=1), torch.ones(3), rtol=0, atol=0.03)
    torch.testing.assert_close(noise.pow(4).mean(dim=1), torch.full((3,), 3.0), rtol=0, atol=0.2)
    correlation = torch.corrcoef(torch.cat([noise, noise.roll(1, dims=1), noise.roll(32, dims=1)]))
    assert (correlation - torch.eye(9)).abs().max() < 0.025
    assert torch.equal(_noise(z, 16, z)[1], _noise(z[1:2], 16, z)[0])


def test_scramble_is_splitmix64():
    """Against the arithmetic of the published C code, in Python integers."""

    def reference(x: int) -> int:
        mask = 2**64 - 1
        x = x * 0x9E3779B97F4A7C15 & mask
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    numbers = [0, 1, 2, 12345, 2**40 + 7, 2**62 + 3, -1, -(2**63)]
    actual = _scramble(torch.tensor(numbers))
    assert [int(n) % 2**64 for n in actual] == [reference(n % 2**64) for n in numbers]


def test_bad_sizes_raise():
    with pytest.raises(ValueError, match=r"z must be \[P, z_dim\] = \[2, 4\], got \[2, 3\]"):
        Conv3DNet(TINY, TEXT_DIM)(texts(2), torch.randn(2, 3))
    for name, value in (
        ("resolution", 48),
        ("z_dim", 0),
        ("hidden", (0,)),
        ("sphere_radius", 1.0),
        ("width", 0.001),
    ):
        with pytest.raises(ValueError, match=name):
            Conv3DConfig(**{name: value})
