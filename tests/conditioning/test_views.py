"""View suffixes for each camera, and Perp-Neg against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from amortized.cameras import cameras_at
from amortized.conditioning import (
    ViewTextConfig,
    expand_row,
    interpolated_text,
    mix_rows,
    perp_neg_text,
    view_suffixes,
)
from amortized.types import Cameras, TextCondition


def cameras(azimuth_deg: list[list[float]], elevation_deg: float | list[list[float]] = 10.0) -> Cameras:
    azimuth = torch.tensor(azimuth_deg, dtype=torch.float64)
    elevation = torch.as_tensor(elevation_deg, dtype=torch.float64).expand_as(azimuth)
    ones = torch.ones_like(azimuth)
    return cameras_at(azimuth_deg=azimuth, elevation_deg=elevation, distance=ones, fovy_deg=50 * ones)


def texts(num_rows: int, seed: int = 0) -> TextCondition:
    generator = torch.Generator().manual_seed(seed)
    return TextCondition(
        pooled=torch.randn(num_rows, 3, generator=generator, dtype=torch.float64),
        tokens=torch.randn(num_rows, 5, 3, generator=generator, dtype=torch.float64),
        mask=torch.arange(5)[None] < torch.randint(2, 6, (num_rows, 1), generator=generator),
    )


def by_hand(azimuth: float, elevation: float) -> tuple[list[float], list[int], list[float]]:
    """Perp-Neg for one camera in plain Python: shares of the four views, negative views, weights."""
    azimuth = abs(azimuth)
    if elevation > 60:
        return [0, 0, 0, 1], [0, 1], [0, 0]
    if azimuth < 90:
        r = 1 - azimuth / 90
        weights = [4 * math.exp(-0.5 * r) - 2.426, 4 * math.exp(-0.5 * (1 - r)) - 2.426]
        return [r, 1 - r, 0, 0], [0, 1], [-0.5 * w for w in weights]
    r = 2 - azimuth / 90
    weights = [math.exp(-0.5 * r) - 0.606, math.exp(-0.5 * r) + 0.967]
    return [0, r, 1 - r, 0], [1, 0], [-0.5 * w for w in weights]


@pytest.mark.parametrize(
    ("azimuth", "view"),
    [(0, 0), (45, 0), (46, 1), (-46, 1), (90, 1), (134, 1), (135, 2), (-135, 2), (180, 2)],
)
def test_the_suffix_follows_the_azimuth(azimuth, view):
    assert view_suffixes(cameras([[azimuth]]), ViewTextConfig()) == [ViewTextConfig().suffixes[view]]


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
@pytest.mark.parametrize("num_views", [1, 4])
def test_a_batch_equals_its_images_one_by_one(num_prompts, num_views):
    config = ViewTextConfig(perp_neg=True)
    generator = torch.Generator().manual_seed(3)
    azimuth = 360 * torch.rand(num_prompts, num_views, generator=generator) - 180
    elevation = 90 * torch.rand(num_prompts, num_views, generator=generator)
    table, null = texts(4 * num_prompts), texts(1, seed=1)
    batch = perp_neg_text(table, null, cameras(azimuth.tolist(), elevation.tolist()), config)
    for p in range(num_prompts):
        rows = slice(4 * p, 4 * p + 4)
        prompt = TextCondition(**{k: getattr(table, k)[rows] for k in ("pooled", "tokens", "mask")})
        for v in range(num_views):
            camera = cameras([[azimuth[p, v].item()]], [[elevation[p, v].item()]])
            single, b = perp_neg_text(prompt, null, camera, config), p * num_views + v
            for part in ("pooled", "tokens", "mask"):
                assert torch.equal(getattr(batch.positive, part)[b], getattr(single.positive, part)[0])
                assert torch.equal(getattr(batch.unconditional, part)[b], getattr(null, part)[0])
                for all_rows, row in zip(batch.negatives, single.negatives, strict=True):
                    assert torch.equal(getattr(all_rows, part)[b], getattr(row, part)[0])
            assert torch.equal(batch.negative_weights[:, b], single.negative_weights[:, 0])


@pytest.mark.parametrize("azimuth", [0, 30, 45, 89, 90, 91, 135, 180, -45, -135])
@pytest.mark.parametrize("elevation", [-10, 60, 61, 90])
def test_perp_neg_against_the_formula_by_hand(azimuth, elevation):
    table, null = texts(4), texts(1, seed=1)
    got = perp_neg_text(table, null, cameras([[azimuth]], elevation), ViewTextConfig(perp_neg=True))
    shares, negatives, weights = by_hand(azimuth, elevation)
    share = torch.tensor(shares, dtype=torch.float64)
    torch.testing.assert_close(got.positive.pooled[0], share @ table.pooled)
    torch.testing.assert_close(got.positive.tokens[0], torch.einsum("v,vld->ld", share, table.tokens))
    assert torch.equal(got.positive.mask[0], table.mask[share > 0].any(0))
    torch.testing.assert_close(got.negative_weights[:, 0], torch.tensor(weights, dtype=torch.float64))
    if elevation <= 60:
        for text, view in zip(got.negatives, negatives, strict=True):
            assert torch.equal(text.tokens[0], table.tokens[view])


@pytest.mark.parametrize("azimuth", [0, 30, 45, 89, 90, 91, 135, 180, -45, -135])
@pytest.mark.parametrize("elevation", [-10, 60, 61])
def test_interpolated_text_is_that_of_perp_neg_without_its_negatives(azimuth, elevation):
    table, null = texts(4), texts(1, seed=1)
    config = ViewTextConfig(interpolate=True)
    got = interpolated_text(table, null, cameras([[azimuth]], elevation), config)
    share = torch.tensor(by_hand(azimuth, elevation)[0], dtype=torch.float64)
    torch.testing.assert_close(got.positive.pooled[0], share @ table.pooled)
    torch.testing.assert_close(got.positive.tokens[0], torch.einsum("v,vld->ld", share, table.tokens))
    assert torch.equal(got.unconditional.tokens, null.tokens)
    assert got.negatives == () and got.negative_weights.shape == (0, 1) and config.num_negatives == 0


# (negative "front", negative "side") at five azimuths, from the published constants, to 4 digits.
PUBLISHED = {
    0: (-0.0001, -0.7870),
    45: (-0.3446, -0.3446),
    90: (-0.7868, -0.0003),
    135: (-0.8729, -0.0864),
    180: (-0.9835, -0.1970),
}


@pytest.mark.parametrize("azimuth", PUBLISHED)
def test_perp_neg_weights_at_five_azimuths(azimuth):
    got = perp_neg_text(texts(4), texts(1), cameras([[azimuth]]), ViewTextConfig(perp_neg=True))
    front, side = got.negative_weights[:, 0].tolist() if azimuth < 90 else got.negative_weights[:, 0].flip(0)
    assert (float(front), float(side)) == pytest.approx(PUBLISHED[azimuth], abs=6e-5)


def test_perp_neg_is_nearly_continuous_at_90_degrees():
    """The published constants leave a jump of 0.0003 in the weights at 90 deg, and none in the text."""
    table, null = texts(4), texts(1, seed=1)
    config = ViewTextConfig(perp_neg=True)
    before, after = (perp_neg_text(table, null, cameras([[a]]), config) for a in (90 - 1e-6, 90.0))
    torch.testing.assert_close(before.positive.tokens, after.positive.tokens, atol=1e-6, rtol=0)
    torch.testing.assert_close(before.negative_weights, after.negative_weights.flip(0), atol=5e-4, rtol=0)


def test_perp_neg_weight_scales_the_weights():
    arguments = texts(4), texts(1), cameras([[30.0]])
    half = perp_neg_text(*arguments, ViewTextConfig(perp_neg=True, perp_neg_weight=-0.5)).negative_weights
    double = perp_neg_text(*arguments, ViewTextConfig(perp_neg=True, perp_neg_weight=-1.0)).negative_weights
    torch.testing.assert_close(double, 2 * half)


def test_mixing_is_exact_at_both_ends():
    first, second = texts(2, seed=1), texts(2, seed=2)
    mixed = mix_rows(first, second, torch.tensor([1.0, 0.0]))
    assert torch.equal(mixed.tokens[0], first.tokens[0]) and torch.equal(mixed.tokens[1], second.tokens[1])
    assert torch.equal(mixed.mask[0], first.mask[0]) and torch.equal(mixed.mask[1], second.mask[1])


def test_expanding_needs_one_row():
    with pytest.raises(AssertionError, match="one row"):
        expand_row(texts(2), 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suffixes": ("a", "b")}, "suffixes must be 4"),
        ({"front_deg": 120.0}, "front_deg must lie"),
        ({"overhead_deg": -91.0}, "overhead_deg must lie"),
        ({"direction_step_deg": 91}, "direction_step_deg must lie"),
        ({"direction_step_deg": 10, "perp_neg": True}, "perp_neg .* needs direction_step_deg=0"),
        ({"direction_step_deg": 10, "interpolate": True}, "interpolate .* needs direction_step_deg=0"),
        ({"interpolate": False, "perp_neg": True}, "set interpolate=true, or perp_neg=false"),
        ({"perp_neg_weight": 0.5}, "perp_neg_weight must not be positive"),
        ({"negatives": ("a", "b"), "negative_weights": (-1.0,)}, "has 2 texts and .* 1 weights"),
        ({"negatives": ("a",), "negative_weights": (0.1,)}, "negative_weights must not be positive"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ViewTextConfig(**settings)


def test_a_table_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="4 rows for each of 2 prompts"):
        perp_neg_text(texts(4), texts(1), cameras([[0.0], [0.0]]), ViewTextConfig(perp_neg=True))
