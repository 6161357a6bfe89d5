"""Settings of published runs: each is accepted and written back, or refused by one sentence that names it."""

from __future__ import annotations

import pytest

from amortized.commands.compose import load_run_config
from amortized.config import ConfigError, config_to_yaml, load_config
from amortized.guidance import GuidanceConfig, check_guidance
from amortized.priors import PriorConfig
from tests.rooms import ROOT

PRESET = ROOT / "configs/quickstart.yaml"


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.render_size=[64,0.4,256]"],
        ["trainer.render_size=64"],
        ["cameras.distance=[[0,5.2,3.5,0.8],[5.5,5]]", "cameras.azimuth_deg=[[-80,-180],[80,180]]"],
        ["cameras.jitter.position=0.1", "cameras.jitter.center=0.2", "cameras.jitter.up=0.02"],
        ["views.direction_step_deg=0", "views.interpolate=true"],
        ["losses.convex=[0,1,0.1,0.4]", "losses.tv=1"],
        ["renderer.stratified=false"],
        ["renderer.shading.kind=none", "renderer.point_light.share=0.3"],
        ["optimizer.environment_encoding_learning_rate=1e-2"],
        ["guidance.method=lods-embedding", "guidance.learned.weight_decay=0.01", "optimizer.name=adamw"],
    ],
)
def test_a_config_with_them_is_written_and_read_back(overrides, tmp_path):
    config = load_run_config(PRESET, overrides)
    assert config != load_run_config(PRESET) or overrides == ["trainer.render_size=64"]
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    assert load_config(type(config), tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.render_size=[64,0.4]", "trainer.render_size must be an integer, or [value, time, value,"),
        ("trainer.render_size=[64,0.4,25.5]", "trainer.render_size must have integers as values"),
        ("cameras.distance=[[5,3],4]", "cameras.distance must be [low, high] with low <= high, got [5.0, 4"),
        ("cameras.fovy_deg=[[10,0],4]", "cameras.fovy_deg must be [low, high]"),
        ("cameras.azimuth_deg=[[1,2,3],4]", "cameras.azimuth_deg: a schedule is a number"),
        ("cameras.jitter.up=-1", "cameras.jitter.up must be at least 0"),
        ("views.interpolate=true", "views.interpolate interpolates between the four views: it needs"),
        ("losses.convex=-1", "losses.convex must not go below 0"),
        ("renderer.point_light.share=2", "renderer.point_light.share must lie in [0, 1]"),
        ("renderer.point_light.share=0.2", "renderer.point_light and shading.kind=lambert would shade"),
        ("optimizer.environment_encoding_learning_rate=0", "must be positive or be null"),
    ],
)
def test_mistakes_are_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        load_run_config(PRESET, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_decay_of_the_reference_model_needs_an_optimizer_that_decays(name):
    overrides = ["guidance.method=vsd", "guidance.learned.weight_decay=0.01", f"optimizer.name={name}"]
    if name == "adamw":
        assert load_run_config(PRESET, overrides).guidance.learned.weight_decay == 0.01
        return
    with pytest.raises(ConfigError, match=r"^guidance.learned.weight_decay=0.01 needs optimizer.name=adamw"):
        load_run_config(PRESET, overrides)


@pytest.mark.parametrize("key", ["perp_neg", "interpolate"])
def test_a_trajectory_cache_needs_few_view_texts(key):
    config = load_run_config(PRESET, ["views.direction_step_deg=0", f"views.{key}=true"])
    guidance = load_config(GuidanceConfig, None, ["method=dsd", "trajectory.cache=true"])
    with pytest.raises(ValueError, match="views.perp_neg=false and views.interpolate=null"):
        check_guidance(guidance, PriorConfig(path="prior"), config.views)
