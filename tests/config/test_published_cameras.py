"""The cameras and view texts that published runs draw, against formulas of the published code."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from amortized.cameras import cameras_from_uniform
from amortized.commands.compose import RunConfig
from amortized.conditioning import perp_neg_text, view_suffixes
from amortized.config import load_config
from amortized.types import Cameras, TextCondition
from tests.rooms import ROOT

DRAWS = 100_000
CRITICAL = 1.95 / math.sqrt(DRAWS)  # of the KS statistic: exceeded by chance once in 1,000
RUNS = {"sd": "asd-sd-hyper-ingp-mg15", "mv": "asd-mv-triplane-dl17k"}


def config_of(kind: str) -> RunConfig:
    return load_config(RunConfig, ROOT / f"configs/published/{RUNS[kind]}.yaml")


def drawn(kind: str) -> Cameras:
    """100,000 prompts with the views of a training step: cameras [P, 1 or 4]."""
    config = config_of(kind)
    u = torch.rand(DRAWS, config.trainer.views_per_prompt, 5, generator=torch.Generator().manual_seed(0))
    return cameras_from_uniform(config.cameras, u.double())


def from_poses(cameras: Cameras) -> dict[str, np.ndarray]:
    """Each [P, V]: azimuth and elevation in degrees and distance, from the poses alone, and fovy_deg."""
    x, y, z = (cameras.c2w[..., axis, 3].numpy() for axis in range(3))
    distance = np.sqrt(x**2 + y**2 + z**2)
    return {
        "azimuth": np.degrees(np.arctan2(y, x)),
        "elevation": np.degrees(np.arcsin(z / distance)),
        "distance": distance,
        "fovy": cameras.fovy_deg.numpy(),
    }


def even(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: (value - low) / (high - low)


def half_and_half(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """Half of the elevations are even in the angle, half in its sine: on the sphere (threestudio)."""

    def cdf(value: np.ndarray) -> np.ndarray:
        sine, start, end = (np.sin(np.radians(angle)) for angle in (value, low, high))
        return 0.5 * (value - low) / (high - low) + 0.5 * (sine - start) / (end - start)

    return cdf


@pytest.mark.parametrize(
    ("kind", "cdfs"),
    [
        (
            "sd",
            {
                "azimuth": even(-180, 180),
                "elevation": half_and_half(-10, 45),
                "distance": even(1, 1.5),
                "fovy": even(40, 70),
            },
        ),
        (
            "mv",
            {
                "azimuth": even(-180, 180),
                "elevation": half_and_half(0, 30),
                "times tan": even(0.8, 1),
                "fovy": even(15, 60),
            },
        ),
    ],
)
def test_cameras_have_the_published_distribution(kind: str, cdfs: dict[str, Callable]):
    values = from_poses(drawn(kind))
    values["times tan"] = values["distance"] * np.tan(np.radians(values["fovy"]) / 2)
    first = {name: values[name][:, 0] for name in cdfs}
    for name, cdf in cdfs.items():
        statistic = kstest(first[name], cdf).statistic
        assert statistic < CRITICAL, f"{name}: {statistic:.4f}"
    # The four numbers are independent: of their ranks, no pair correlates.
    correlation = np.corrcoef([value.argsort().argsort() for value in first.values()]) - np.eye(4)
    assert np.abs(correlation).max() < 4 / math.sqrt(DRAWS)


def test_views_of_a_multi_view_prior_form_a_ring():
    """Azimuths 90 degrees apart, all else equal; distances from 1.39 to 7.60 (0.8 and 1 over the tangent)."""
    values = from_poses(drawn("mv"))
    gaps = np.sort(values["azimuth"], axis=1)
    gaps = np.diff(np.concatenate([gaps, gaps[:, :1] + 360], axis=1), axis=1)
    assert gaps.shape[1] == 4 and np.abs(gaps - 90).max() < 1e-6
    for name in ("elevation", "distance", "fovy"):
        assert np.ptp(values[name], axis=1).max() < 1e-6
    assert values["distance"].min() > 0.8 / math.tan(math.radians(30)) - 1e-9
    assert values["distance"].max() < 1 / math.tan(math.radians(7.5)) + 1e-9


# ---- texts ------------------------------------------------------------------------------------


def published_perp_neg(azimuth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of front, side, back and overhead in a text, the two negatives, and their weights, [N, ...]."""
    away = np.abs(azimuth)
    front_half = away < 90
    r = np.where(front_half, 1 - away / 90, 2 - away / 90)
    zero = np.zeros_like(r)
    shares = np.where(front_half, [r, 1 - r, zero, zero], [zero, r, 1 - r, zero])
    negatives = np.where(front_half, [[0], [1]], [[1], [0]])  # front and side, or side and front
    front_side, side_front = (4 * np.exp(-0.5 * x) - 2.426 for x in (r, 1 - r))
    side_back, front_back = np.exp(-0.5 * r) - 0.606, np.exp(-0.5 * r) + 0.967
    weights = np.where(front_half, [front_side, side_front], [side_back, front_back])
    return shares.T, negatives.T, -0.5 * weights.T


def test_texts_and_negatives_over_the_cameras_of_stable_diffusion():
    """The texts of the views are unit vectors, so that a text is the shares of its views."""
    config, cameras = config_of("sd"), drawn("sd")
    azimuth = from_poses(cameras)["azimuth"][:, 0]
    one = Cameras(**{name: value.transpose(0, 1) for name, value in vars(cameras).items()})  # [1, DRAWS]
    views = TextCondition(
        pooled=torch.eye(4).double(), tokens=torch.eye(4).double()[:, None], mask=torch.ones(4, 1).bool()
    )
    null = TextCondition(
        pooled=torch.zeros(1, 4).double(),
        tokens=torch.zeros(1, 1, 4).double(),
        mask=torch.ones(1, 1).bool(),
    )
    assert config.views.perp_neg
    text = perp_neg_text(views, null, one, config.views)
    shares, negatives, weights = published_perp_neg(azimuth)
    np.testing.assert_allclose(text.positive.pooled.numpy(), shares, atol=1e-6)
    ours = np.stack([negative.pooled.numpy().argmax(axis=1) for negative in text.negatives], axis=1)
    # On either side of 90 degrees the formulas differ: leave out what rounding may decide.
    clear = np.abs(np.abs(azimuth) - 90) > 1e-6
    assert np.array_equal(ours[clear], negatives[clear])
    np.testing.assert_allclose(text.negative_weights.T.numpy()[clear], weights[clear], atol=1e-6)
    assert not text.unconditional.pooled.any()
    # What azimuths even over the circle give on average, integrated by hand.
    assert text.positive.pooled.mean(dim=0).tolist() == pytest.approx([0.25, 0.5, 0.25, 0], abs=0.005)
    e = 2 * (1 - math.exp(-0.5))  # the mean of exp(-r / 2)
    means = [-0.25 * (4 * e - 2.426 + e - 0.606), -0.25 * (4 * e - 2.426 + e + 0.967)]
    assert text.negative_weights.mean(dim=1).tolist() == pytest.approx(means, abs=0.01)


def test_suffixes_over_the_cameras_without_perp_neg():
    """Within 30 degrees of the front and of the back: a sixth each; no camera is above 60 degrees."""
    config, cameras = config_of("sd"), drawn("sd")
    few = Cameras(**{name: value[:20_000] for name, value in vars(cameras).items()})
    azimuth = np.abs(from_poses(few)["azimuth"][:, 0])
    expected = np.where(azimuth <= 30, ", front view", np.where(azimuth >= 150, ", back view", ", side view"))
    suffixes = np.array(view_suffixes(few, config.views))
    assert np.array_equal(suffixes, expected)
    shares = [np.mean(suffixes == f", {view} view") for view in ("front", "side", "back", "overhead")]
    assert shares == pytest.approx([1 / 6, 2 / 3, 1 / 6, 0], abs=0.01)


def test_a_multi_view_prior_gets_the_plain_prompt():
    config, cameras = config_of("mv"), drawn("mv")
    few = Cameras(**{name: value[:5_000] for name, value in vars(cameras).items()})
    assert not config.views.interpolates and set(view_suffixes(few, config.views)) == {""}
