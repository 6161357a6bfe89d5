"""Timesteps cover their range, both ends included, and shifts never leave it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amortized.guidance import GuidanceConfig, LaterTime, draw_timesteps, same_time, timestep_range


def test_the_published_annealing():
    config = GuidanceConfig()
    assert timestep_range(config, 0.0, 1000) == (500, 980)
    assert timestep_range(config, 0.5, 1000) == (260, 740)
    assert timestep_range(config, 1.0, 1000) == (20, 500)
    assert timestep_range(config, 2.0, 1000) == (20, 500)


@pytest.mark.parametrize("percent", range(101))
def test_fractions_round_down_without_floating_point_slips(percent):
    config = GuidanceConfig(t_min=(percent / 100,) * 2, t_max=(1.0, 1.0))
    assert timestep_range(config, 0.37, 1000) == (min(10 * percent, 999), 999)


def test_every_timestep_of_the_range_and_no_other_equally_often():
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
    low=st.integers(0, 999),
    eta=st.floats(0, 5),
    u=st.floats(0, 1, exclude_max=True),
    random=st.booleans(),
)
def test_shift_against_the_formula(t, low, eta, u, random):
    t = max(t, low)
    later = LaterTime(eta=eta, random=random)(torch.tensor([t]), torch.tensor([u]).double(), low, 1000).item()
    exact = min(eta * (t - low), 999 - t) * (u if random else 1)
    assert t <= later <= 999
    assert later - t in (math.floor(exact), math.floor(exact + 1e-9))


def test_shift_statistics_at_the_start_of_a_run():
    """Published figures of ScaleDreamer's rule: at most 45, about 11 on average, zero in ~10 %."""
    u = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(0))
    t = draw_timesteps(u[0], 500, 980)
    shift = (LaterTime(eta=0.1)(t, u[1], 500, 1000) - t).double()
    assert shift.max() == 45 and shift.mean().item() == pytest.approx(11, abs=1)
    assert (shift == 0).double().mean().item() == pytest.approx(0.10, abs=0.03)


def test_no_shift_where_there_is_none_to_make():
    t, u = torch.tensor([20, 400, 999]), torch.tensor([0.9, 0.9, 0.9])
    assert same_time(t, u, 20, 1000) is t
    assert LaterTime(eta=0.0)(t, u, 20, 1000).tolist() == t.tolist()
    assert LaterTime(eta=0.1, random=False)(t, u, 20, 1000).tolist() == [20, 438, 999]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dreamfusion"}, "guidance.method must be one of asd, csd, sds, got 'dreamfusion'"),
        ({"weighting": "linear"}, "guidance.weighting must be one of"),
        ({"normalize": "batch"}, "guidance.normalize must be one of none, per_sample"),
        ({"guidance_scale": (1.0, 2.0, 3.0)}, r"guidance_scale must be a number or \[start, end\]"),
        ({"t_min": (0.99, 0.02)}, "at the start of the run"),
        ({"t_max": (0.98, 0.01)}, "at the end of the run"),
        ({"t_max": (1.2, 0.5)}, "0 <= t_min <= t_max <= 1"),
        ({"shift_eta": -0.1}, "guidance.shift_eta"),
        ({"weight": -1.0}, "guidance.weight"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**settings)


def test_the_guidance_scale_runs_linearly():
    config = GuidanceConfig(guidance_scale=(100.0, 7.5))
    assert [config.scale_at(p) for p in (0.0, 0.5, 1.0)] == [100.0, 53.75, 7.5]
    assert GuidanceConfig(guidance_scale=20).scale_at(0.7) == 20.0
