"""Median depths against a loop over pixels and splats."""

from __future__ import annotations

import math

import pytest
import torch

from amortized.rendering.splats import pairs
from amortized.rendering.splats.depths import median_depths
from amortized.rendering.splats.projection import project
from tests.rendering.splats import made


@pytest.mark.parametrize("limit", [64, 1 << 18])
def test_the_splat_that_halves_the_light(limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(pairs.MAX_PAIRS, "cpu", limit)
    size, scene, cameras = 10, made.shell(2, 60), made.cameras_for(2, 3)
    depths = median_depths(scene, cameras, size, size)
    assert depths.shape == (2, 3, size, size) and 0 < depths.isfinite().float().mean() < 1
    projection = project(scene, cameras, size, size, antialias=True)
    for p, v, row, column in [
        (p, v, r, c) for p in range(2) for v in range(3) for r in range(size) for c in (2, 5)
    ]:
        light, expected = 1.0, math.inf
        for k in projection.depths[p, v].argsort().tolist():
            xx, xy, yy = projection.conics[p, v, k].tolist()
            dx, dy = (projection.means[p, v, k] - torch.tensor([column + 0.5, row + 0.5])).tolist()
            power = -0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy
            alpha = min(float(projection.opacities[p, v, k]) * math.exp(power), 0.999)
            light *= 1 - (alpha if alpha >= 1 / 255 else 0)
            if light <= 0.5:
                tangent = math.tan(math.radians(float(cameras.fovy_deg[p, v]) / 2)) * 2 / size
                offset = tangent * math.hypot(column + 0.5 - size / 2, row + 0.5 - size / 2)
                expected = float(projection.depths[p, v, k]) * math.hypot(1, offset)
                break
        assert float(depths[p, v, row, column]) == pytest.approx(expected), (p, v, row, column)
