"""Real spherical harmonics against SciPy's complex ones."""

import math

import pytest
import torch
from scipy.special import sph_harm_y

from amortized.encodings.spherical_harmonics import MAX_BANDS, spherical_harmonics


@pytest.mark.parametrize("num_bands", range(1, MAX_BANDS + 1))
def test_equal_scipy(num_bands: int):
    directions = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    polar, azimuth = directions[:, 2].arccos().numpy(), torch.atan2(*directions.T[[1, 0]]).numpy()
    expected = []
    for band in range(num_bands):
        for m in range(-band, band + 1):
            value = sph_harm_y(band, abs(m), polar, azimuth) * (-1) ** m  # SciPy includes the phase
            component = value.real if m >= 0 else value.imag
            expected.append(torch.from_numpy(component * (math.sqrt(2) if m else 1)))
    torch.testing.assert_close(spherical_harmonics(directions, num_bands), torch.stack(expected, dim=-1))
