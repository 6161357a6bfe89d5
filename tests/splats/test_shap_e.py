"""The documented way from Shap-E to splats, with a stand-in for its pipeline."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch

from amortized.splats import read_points_ply
from tests.rooms import ROOT


def test_the_documented_lines_write_the_vertices_of_a_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (ROOT / "docs/one-object.md").read_text(encoding="utf-8")
    [block] = [code for code in re.findall(r"(?ms)^```python\n(.*?)^```", page) if "ShapEPipeline" in code]
    vertices, rgb = torch.randn(40, 3), torch.rand(40, 3)
    mesh = SimpleNamespace(verts=vertices, vertex_channels=dict(zip("RGB", rgb.T, strict=True)))

    def pipeline(prompt: str, *, guidance_scale: float, num_inference_steps: int, output_type: str):
        assert (guidance_scale, num_inference_steps, output_type) == (15, 64, "mesh") and prompt
        return SimpleNamespace(images=[mesh])

    assert callable(diffusers.ShapEPipeline.__call__)
    monkeypatch.setattr(diffusers.ShapEPipeline, "from_pretrained", lambda name: pipeline)
    monkeypatch.chdir(tmp_path)
    Path("lines.py").write_text(block, encoding="utf-8")
    runpy.run_path("lines.py")
    points, colors = read_points_ply("points.ply")
    assert torch.equal(points, vertices[::4]) and colors is not None
    torch.testing.assert_close(colors, rgb[::4], rtol=0, atol=0.6 / 255)
