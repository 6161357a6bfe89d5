"""Conversions between noise, x0 and v against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from amortized.priors.schedule import (
    add_noise,
    alphas_at,
    noise_to_x0,
    scaled_linear_alphas_cumprod,
    velocity_to_noise,
    x0_to_noise,
)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 3, 2, 2, generator=generator, dtype=torch.float64)
    timesteps = torch.tensor([0, 1, 200, 500, 998, 999])
    abar = alphas_at(scaled_linear_alphas_cumprod(), timesteps, x0)
    return x0, noise, abar, add_noise(x0, noise, abar)


def test_scaled_linear_schedule_against_a_plain_loop():
    product, expected = 1.0, []
    for t in range(1000):
        product *= 1 - (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * t / 999) ** 2
        expected.append(product)
    torch.testing.assert_close(scaled_linear_alphas_cumprod(), torch.tensor(expected), rtol=1e-6, atol=0)
    assert scaled_linear_alphas_cumprod()[-1].item() == pytest.approx(0.0047, abs=5e-5)  # as published


def test_alphas_at_looks_up_per_item(case):
    table = torch.tensor([0.9, 0.5, 0.1])
    got = alphas_at(table, torch.tensor([2, 0]), case[0][:2])
    assert got.shape == (2, 1, 1, 1) and got.dtype == torch.float64
    assert got.flatten().tolist() == pytest.approx([0.1, 0.9])


def test_x_t_and_v_are_a_rotation_of_x0_and_noise(case):
    """(x_t, v) is (x0, noise) rotated by the angle whose cosine is sqrt(abar)."""
    x0, noise, abar, x_t = case
    angle = torch.acos(abar.sqrt())
    v = angle.cos() * noise - angle.sin() * x0
    torch.testing.assert_close(x_t, angle.cos() * x0 + angle.sin() * noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(velocity_to_noise(v, x_t, abar), noise, rtol=1e-9, atol=1e-9)


def test_conversions_against_the_forward_process(case):
    x0, noise, abar, x_t = case
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x0
    for got, expected in [
        (noise_to_x0(noise, x_t, abar), x0),
        (x0_to_noise(x0, x_t, abar), noise),
        (velocity_to_noise(v, x_t, abar), noise),
    ]:
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_v_converts_to_noise_at_zero_signal():
    x0, noise = torch.randn(2, 1, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    abar = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert torch.equal(velocity_to_noise(-x0, noise, abar), noise)
