"""Triplane-Transformer: published size, attention against PyTorch's module, planes, and masks."""

import pytest
import torch
from torch.nn import functional

from amortized.types import Scene, TextCondition
from generators.triplane_transformer import (
    TriplaneTransformer,
    TriplaneTransformerConfig,
    _Attention,
    filtered,
    read_planes,
    waves,
)
from tests.generators.helpers import TEXT_DIM, perturb, texts

TINY = TriplaneTransformerConfig(
    plane_tokens=3, width=12, num_layers=2, num_heads=3, plane_channels=4, hidden=(7, 5)
)
POOLED = TriplaneTransformerConfig(**{**vars(TINY), "text": "pooled"})
SMOOTH = TriplaneTransformerConfig(**{**vars(TINY), "smooth": True})


def planes_of(scene: Scene) -> torch.Tensor:
    """Return the planes [P, 3, F, H, W] of a scene."""
    return scene.features.rows[0]


def perturbed(config: TriplaneTransformerConfig) -> TriplaneTransformer:
    torch.manual_seed(0)
    return perturb(TriplaneTransformer(config, TEXT_DIM), by=0.3)


@pytest.mark.parametrize("smooth", [False, True])
def test_published_parameter_count(smooth: bool):
    with torch.device("meta"):
        generator = TriplaneTransformer(TriplaneTransformerConfig(smooth=smooth), 1024)
    assert round(sum(p.numel() for p in generator.parameters()) / 1e6, 1) == 120.5


@pytest.mark.parametrize("config", [TINY, POOLED, SMOOTH])
def test_every_prompt_starts_as_mid_gray_sphere(config: TriplaneTransformerConfig):
    torch.manual_seed(0)
    scene = TriplaneTransformer(config, TEXT_DIM)(texts(3))
    assert isinstance(scene, Scene) and planes_of(scene).shape == (3, 3, 4, 6, 6)
    points = (2 * torch.rand(3, 50, 3) - 1) / 3**0.5
    sdf, albedo = scene.sdf_and_albedo(points)
    torch.testing.assert_close(sdf, points.norm(dim=-1) - 0.8, rtol=0, atol=0.02)
    torch.testing.assert_close(albedo, torch.full_like(albedo, 0.5), rtol=0, atol=0.01)


def test_smooth_planes_start_as_tokens_upsampled_bilinearly():
    torch.manual_seed(0)
    generator = TriplaneTransformer(SMOOTH, TEXT_DIM)
    outputs = []
    generator.norm.register_forward_hook(lambda _, __, out: outputs.append(out))
    planes = planes_of(generator(texts(2)))
    tokens = outputs[0].view(2 * 3, 3, 3, 12) @ generator.to_planes.weight[:, :, 0, 0]
    expected = functional.interpolate(tokens.movedim(-1, 1), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(planes.flatten(0, 1), expected, rtol=0, atol=1e-6)


def test_filter_removes_alternation_and_keeps_linear():
    columns = torch.arange(8.0).expand(8, 8)
    linear, alternating = 2 * columns - columns.t(), (-1) ** columns
    planes = filtered(torch.stack([linear, alternating + 1, alternating.t()])[None])[0]
    torch.testing.assert_close(planes[0, 1:-1, 1:-1], linear[1:-1, 1:-1])
    torch.testing.assert_close(planes[1, :, 1:-1], torch.ones(8, 6))
    torch.testing.assert_close(planes[2, 1:-1], torch.zeros(6, 8))


def test_wave_tokens():
    """Row i, column j: [sin(i w), cos(i w), sin(j w), cos(j w)], w = 1 and 0.01, plus a plane's vector."""
    tokens = waves(3, 8).view(3, 9, 8)
    plane_vectors = tokens[:, :1] - torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])
    torch.testing.assert_close((tokens - plane_vectors)[1], (tokens - plane_vectors)[0])
    i, j = 2.0, 1.0
    w = torch.tensor([1.0, 0.01])
    expected = torch.cat([(i * w).sin(), (i * w).cos(), (j * w).sin(), (j * w).cos()])
    torch.testing.assert_close((tokens - plane_vectors)[2, 2 * 3 + 1], expected)
    assert (plane_vectors[0] - plane_vectors[1]).abs().min() > 1e-3 and waves(2, 6).shape == (12, 6)


def test_attention_equals_pytorch():
    torch.manual_seed(0)
    attention = _Attention(12, 3, 6)
    reference = torch.nn.MultiheadAttention(12, 3, kdim=6, vdim=6, bias=False, batch_first=True)
    with torch.no_grad():
        reference.q_proj_weight.copy_(attention.query.weight)
        reference.k_proj_weight.copy_(attention.key.weight)
        reference.v_proj_weight.copy_(attention.value.weight)
        reference.out_proj.weight.copy_(attention.out.weight)
    x, text = torch.randn(2, 7, 12), texts(2)
    expected, _ = reference(x, text.tokens, text.tokens, key_padding_mask=~text.mask)
    torch.testing.assert_close(
        attention(x, text.tokens, text.mask[:, None, None]), expected, rtol=1e-4, atol=1e-5
    )


def test_point_reads_its_position_on_every_plane():
    """Planes whose features are their cell centers return xy, xz and zy, in this order."""
    centers = (torch.arange(8) + 0.5) / 4 - 1
    row, column = torch.meshgrid(centers, centers, indexing="ij")
    plane = torch.stack([column, row])
    planes = torch.stack([torch.stack([plane] * 3), torch.stack([-plane] * 3)])
    points = 2 * torch.rand(2, 40, 3) - 1
    x, y, z = (points * torch.tensor([1.0, -1.0])[:, None, None]).unbind(-1)
    expected = torch.stack([x, y, x, z, z, y], dim=-1)
    torch.testing.assert_close(read_planes(0.8 * points, planes), 0.8 * expected, rtol=0, atol=1e-5)


def test_padding_has_no_effect():
    generator, text = perturbed(TINY), texts(3)
    noise = torch.where(text.mask[..., None], text.tokens, 100 * torch.randn(3, 5, TEXT_DIM))
    other = TextCondition(pooled=text.pooled, tokens=noise, mask=text.mask)
    with torch.no_grad():
        torch.testing.assert_close(planes_of(generator(text)), planes_of(generator(other)))


@pytest.mark.parametrize(("config", "conditioning"), [(TINY, "tokens"), (POOLED, "pooled")])
def test_conditioning_follows_setting(config: TriplaneTransformerConfig, conditioning: str):
    generator, text = perturbed(config), texts(1)
    with torch.no_grad():
        planes = planes_of(generator(text))
        for name in ("tokens", "pooled"):
            changed = TextCondition(**{**vars(text), name: getattr(text, name) + 1})
            assert torch.allclose(planes_of(generator(changed)), planes, atol=1e-4) == (name != conditioning)


PUBLISHED = TriplaneTransformerConfig(
    **{**vars(TINY), "attention_bias": True, "attend_padding": True, "rgb_padding": 0.001}
)


def test_settings_of_the_published_code_are_off_by_default():
    """Biases add 2 * 768 parameters a layer; without them names and initial weights stay those of earlier."""
    with torch.device("meta"):
        plain, biased = (TriplaneTransformerConfig(attention_bias=on).build(1024) for on in (None, True))
    added = {name: value for name, value in biased.state_dict().items() if name not in plain.state_dict()}
    assert all(name.endswith("attention.out.bias") for name in added)
    assert sum(value.numel() for value in added.values()) == 12 * 2 * 768
    off = TriplaneTransformerConfig(
        **{**vars(TINY), "attention_bias": False, "attend_padding": False, "rgb_padding": 0.0}
    )
    generator, other, text = perturbed(TINY), perturbed(off), texts(3)
    points = 2 * torch.rand(3, 20, 3) - 1
    for ours, theirs in zip(
        generator(text).sdf_and_albedo(points), other(text).sdf_and_albedo(points), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_padding_counts_if_requested(checkpointing: bool):
    config = TriplaneTransformerConfig(**{**vars(PUBLISHED), "checkpointing": checkpointing})
    generator, text = perturbed(config), texts(3)
    whole = TextCondition(pooled=text.pooled, tokens=text.tokens, mask=torch.ones_like(text.mask))
    masked = perturbed(TriplaneTransformerConfig(**{**vars(config), "attend_padding": None}))
    torch.testing.assert_close(planes_of(generator(text)), planes_of(masked(whole)))
    assert not torch.allclose(planes_of(generator(text))[1:], planes_of(masked(text))[1:], atol=1e-3)


def test_padded_colors_reach_beyond_black_and_white():
    scene = perturbed(PUBLISHED)(texts(2))
    points = 2 * torch.rand(2, 20, 3) - 1
    plain = torch.sigmoid(scene.head_rgb(scene.features(points)))
    torch.testing.assert_close(scene.sdf_and_albedo(points)[1], 1.002 * plain - 0.001)
    assert scene.select(1).rgb_padding == 0.001


def test_bad_sizes_raise():
    text = texts(2)
    with pytest.raises(ValueError, match="attend_padding is about tokens: set text=tokens"):
        TriplaneTransformerConfig(text="pooled", attend_padding=True)
    for padding in (-0.1, 0.2):
        with pytest.raises(ValueError, match=r"rgb_padding must lie in \[0, 0.1\] or be null"):
            TriplaneTransformerConfig(rgb_padding=padding)
    with pytest.raises(ValueError, match=r"tokens \[2, 5, 6\] need a bool mask \[2, 5\], got none"):
        perturbed(TINY)(TextCondition(pooled=text.pooled, tokens=text.tokens, mask=None))
    for name, value in (("num_heads", 7), ("plane_tokens", 0), ("hidden", (0,)), ("sphere_radius", 1.0)):
        with pytest.raises(ValueError, match=name):
            TriplaneTransformerConfig(**{name: value})
