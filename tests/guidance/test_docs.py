"""docs/guidance.md agrees with the code."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from amortized.config import load_config
from amortized.guidance import METHODS, GuidanceConfig, calls_per_image, published
from amortized.guidance.methods import build_method
from amortized.guidance.noise import SeedTrajectory
from amortized.guidance.scores import Null

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guidance.md").read_text()


@dataclass(frozen=True, kw_only=True)
class OnlyGuidance:
    guidance: GuidanceConfig


def test_the_yaml_example_builds_the_described_method(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    config = load_config(OnlyGuidance, tmp_path / "example.yaml").guidance
    method = build_method(config)
    assert isinstance(method.noise, SeedTrajectory) and method.reference == Null(learned=True)
    assert config.learned.kind == "adapter" and config.trajectory.num_steps == 10


@pytest.mark.parametrize("method", METHODS)
def test_the_documented_costs_are_those_of_the_code(method):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{method}` |")]
    cost = row.split("|")[5]
    forward, learning = re.fullmatch(r" ([\d.]+)(?: \+ (1) with gradient)? ", cost).groups()
    expected = float(forward) + float(learning or 0)
    assert calls_per_image(published(method)) == pytest.approx(expected, abs=0.05)
    assert (published(method).learned is not None) == bool(learning)


def test_every_setting_is_documented():
    words = set(re.findall(r"`([a-z_]+)[.:`]", PAGE))
    names = [field.name for field in fields(GuidanceConfig) if not field.name.startswith("shift")]
    names.remove("method")  # a name for reports, not a part
    assert [name for name in names if name not in words] == []
