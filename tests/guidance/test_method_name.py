"""The name of a config's method, in reports and in a run's config.yaml."""

from __future__ import annotations

from dataclasses import replace

import pytest

from amortized.cli import preset_paths
from amortized.commands.compose import load_run_config
from amortized.config import config_to_yaml
from amortized.guidance import METHODS, GuidanceConfig, method_name, published


@pytest.mark.parametrize("method", METHODS)
def test_every_published_method_is_recognized(method):
    """Recorded or not (config.yaml of earlier versions), and with other schedules and weights."""
    config = published(method, weight=0.3, t_max=1.0, t_min=0.5)
    assert config.method == method_name(config) == method
    assert method_name(replace(config, method=None)) == method


def test_changed_parts_are_not_the_named_method():
    assert method_name(GuidanceConfig()) == "asd"
    assert method_name(published("asd", reference="null", shift="none")) == "csd"
    assert method_name(published("asd", reference="null")) == "custom"


@pytest.mark.parametrize("preset", preset_paths(), ids=lambda path: path.stem)
def test_a_runs_config_records_the_name_of_its_preset(preset, tmp_path):
    # Some presets are only bases of others.
    config = load_run_config(preset, ["corpus=shapes16", "prior=checkpoints/shapes-prior", "output=run"])
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    again = load_run_config(tmp_path / "config.yaml")
    assert again == config and again.guidance.method == config.guidance.method
    assert method_name(again.guidance) in METHODS
    assert again.guidance.method in (None, method_name(again.guidance))
