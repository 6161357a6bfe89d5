"""Timesteps cover their range including both ends, and shifts never leave it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amortized.guidance import GuidanceConfig, published
from amortized.guidance.timesteps import draw_timesteps, reference_timesteps, shift_later, timestep_range


def test_asd_anneals_as_published():
    asd = published("asd")
    assert asd == GuidanceConfig()
    assert timestep_range(asd, 0.0, 1000) == (500, 980)
    assert timestep_range(asd, 0.5, 1000) == (260, 740)
    assert timestep_range(asd, 1.0, 1000) == (20, 500)
    assert timestep_range(asd, 2.0, 1000) == (20, 500)


def test_dsd_anneals_with_the_root_of_the_progress():
    """Published figures: 980 to 320, half of the steps at 513 or below, 1.4 % above 900."""
    dsd = published("dsd")
    times = [timestep_range(dsd, k / 10_000, 1000) for k in range(10_000)]
    assert times[0] == (980, 980) and timestep_range(dsd, 1.0, 1000) == (320, 320)
    assert times[5000] == (513, 513)
    assert sum(low > 900 for low, _ in times) == pytest.approx(140, abs=10)
    assert all(low == high for low, high in times)


def test_dsd_shifts_as_published():
    """Published figures: 10.4 on average, none in 13 % of the steps; at most min(0.1 (t - 320), 999 - t)."""
    dsd, u = published("dsd"), torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    shifts = []
    for k in range(10_000):
        low, _ = timestep_range(dsd, k / 10_000, 1000)
        t = torch.tensor([low])
        later = reference_timesteps(dsd, t, u[k : k + 1], low=low, num_timesteps=1000, progress=k / 10_000)
        shifts.append(int(later) - low)
    shifts = torch.tensor(shifts).double()
    assert shifts.mean().item() == pytest.approx(10.4, abs=0.3) and 55 <= shifts.max() <= 61
    assert (shifts == 0).double().mean().item() == pytest.approx(0.13, abs=0.02)


def test_lods_halves_its_range_at_two_fifths():
    lods = published("lods-embedding")
    assert [timestep_range(lods, p, 1000) for p in (0.0, 0.399, 0.41, 1.0)] == [
        (20, 980),
        (20, 980),
        (20, 500),
        (20, 500),
    ]


def test_ism_warms_up_as_published():
    """t up to 980, later 500; s is 100 before t, later 80, and never below 0."""
    ism, t = published("ism"), torch.tensor([500, 60])
    assert timestep_range(ism, 0.0, 1000) == (20, 980) and timestep_range(ism, 0.15, 1000) == (20, 740)
    assert timestep_range(ism, 0.3, 1000) == timestep_range(ism, 1.0, 1000) == (20, 500)
    for progress, expected in ((0.0, [400, 0]), (0.15, [410, 0]), (1.0, [420, 0])):
        earlier = reference_timesteps(ism, t, t / 1000, low=20, num_timesteps=1000, progress=progress)
        assert earlier.tolist() == expected


@pytest.mark.parametrize("percent", range(101))
def test_fractions_round_down_without_floating_point_error(percent):
    config = GuidanceConfig(t_min=percent / 100, t_max=1.0)
    assert timestep_range(config, 0.37, 1000) == (min(10 * percent, 999), 999)


def test_timesteps_are_uniform_on_the_range():
    u = (torch.arange(4800) + 0.5) / 4800
    counts = torch.bincount(draw_timesteps(u, 20, 67), minlength=1000)
    assert counts[20:68].tolist() == [100] * 48 and counts.sum() == 4800


@given(low=st.integers(0, 999), width=st.integers(0, 999))
def test_bounds_are_inclusive(low, width):
    high = min(low + width, 999)
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw_timesteps(ends, low, high).tolist() == [low, high]
    assert draw_timesteps(torch.tensor([1 - 2**-24]), low, high).tolist() == [high]


@given(
    t=st.integers(0, 999),
    start=st.integers(0, 999),
    eta=st.floats(0, 5),
    u=st.floats(0, 1),
)
def test_shift_against_the_formula(t, start, eta, u):
    shifted = shift_later(torch.tensor([t]), torch.tensor([u]).double(), eta, start, 1000).item()
    exact = max(min(eta * (t - start), 999 - t), 0) * u
    assert t <= shifted <= 999
    assert shifted - t in (math.floor(exact), math.floor(exact + 1e-9))


def test_asd_shift_statistics_at_the_start_of_a_run():
    """Published figures of ScaleDreamer's rule: at most 45, about 11 on average, zero in ~10 %."""
    u = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(0))
    t = draw_timesteps(u[0], 500, 980)
    shift = (reference(GuidanceConfig(), t, u[1], 500) - t).double()
    assert shift.max() == 45 and shift.mean().item() == pytest.approx(11, abs=1)
    assert (shift == 0).double().mean().item() == pytest.approx(0.10, abs=0.03)


def reference(config: GuidanceConfig, t: torch.Tensor, u: torch.Tensor, low: int) -> torch.Tensor:
    return reference_timesteps(config, t, u, low=low, num_timesteps=1000, progress=0.0)


def test_shift_settings():
    t, u = torch.tensor([20, 400, 999]), torch.tensor([0.9, 0.9, 0.9])
    assert reference(GuidanceConfig(shift="none"), t, u, 20) is t
    assert reference(GuidanceConfig(shift_eta=0.0), t, u, 20).tolist() == t.tolist()
    assert reference(GuidanceConfig(shift_random=False), t, u, 20).tolist() == [20, 438, 999]
    assert reference(GuidanceConfig(shift_random=False, shift_start=0.3), t, u, 20).tolist() == [20, 410, 999]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dreamfusion"}, "guidance.method must be one of sds, csd, vsd, .*, got 'dreamfusion'"),
        ({"weighting": "linear"}, "guidance.weighting must be one of"),
        ({"noise": "white"}, "guidance.noise must be one of gaussian, inversion, seed, got 'white'"),
        ({"reference": "nothing"}, "guidance.reference must be one of noise, null, guided"),
        ({"shift": "sideways"}, "guidance.shift must be one of none, later, earlier"),
        ({"normalize": "batch"}, "guidance.normalize must be one of none, per_sample"),
        (
            {"guidance_scale": (1.0, 2.0, 3.0)},
            r"guidance_scale: a schedule is a number",
        ),
        ({"guidance_scale": -1.0}, "guidance_scale must be positive"),
        ({"t_min": (0.99, 0.02)}, r"t_min <= t_max <= 1, got \[0.99, 0.98\] after 0% of the run"),
        ({"t_max": (0.98, 0.01)}, r"got \[0.02, 0.01\] after 100% of the run"),
        ({"t_max": (0.0, 0.98, 0.1, 0.5, 0.98, 1.0)}, "after 50% of the run"),
        ({"t_max": (1.2, 0.5)}, "0 <= t_min <= t_max <= 1"),
        ({"shift_eta": -0.1}, "shift_eta must be at least 0"),
        ({"shift_start": 1.5}, "guidance.shift_start must lie in"),
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"max_norm": 0.0}, "max_norm must be positive or be null"),
        ({"method": "lods-embedding", "guidance_scale": 0.0}, "guidance_scale must be positive"),
        ({"method": "sds", "guidance_scale": (7.5, 0.0)}, "guidance_scale must be positive"),
        ({"method": "sds", "residual": "image"}, "residual=image .*weighting=sigma_over_alpha"),
        ({"method": "vsd", "reference": "noise"}, "learned would be trained but not used"),
        ({"method": "lods-embedding", "learned": None}, "set learned.kind"),
        ({"method": "vsd", "learned": {"rank": 0}}, "guidance.learned.rank must be at least 1"),
        ({"method": "vsd", "learned": {"learning_rate": 0.0}}, "learned.learning_rate must be positive"),
        ({"noise": "inversion"}, "noise=inversion goes up to t' .* shift=none or shift=earlier"),
        ({"reference": "inverted"}, "it needs noise=inversion and shift=earlier"),
        ({"inversion": {"stride": 0.0}}, "guidance.inversion.stride must lie in"),
        ({"inversion": {"eta": 2.0}}, "guidance.inversion.eta must lie in"),
        ({"trajectory": {"num_steps": 0}}, "guidance.trajectory.num_steps must be at least 1"),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        published(**{"method": "asd", **settings})


def test_settings_override_the_published_ones():
    vsd = published("vsd", guidance_scale=3.0, learned={"rank": 8})
    assert vsd.guidance_scale == 3.0 and vsd.reference == "learned"
    assert (vsd.learned.kind, vsd.learned.rank, vsd.learned.lora_scale) == ("lora", 8, 1.0)
