"""Clone, split and prune: thresholds, room under the cap, and the published settings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from amortized.splats import (
    Parameters,
    SplittingConfig,
    clone_split_prune,
    empty_statistics,
    reset_logits,
    rotation_matrices,
)
from amortized.types import ScreenStatistics
from tests.splats import made

CONFIG = SplittingConfig(gradient=1.0, dense_share=0.1, extent=1.0)


def measured(parameters: Parameters, hot: list[int]) -> ScreenStatistics:
    statistics = empty_statistics(len(parameters["means"]), parameters["means"])
    statistics.visits[0] = 2
    statistics.gradient[0, hot] = 2.0 + torch.arange(len(hot)).double()
    return statistics


def opaque_cloud(count: int) -> Parameters:
    parameters = made.cloud(count)
    parameters["logits"].fill_(2.0)
    parameters["log_scales"][:] = math.log(0.02)
    return parameters


def changed(parameters: Parameters, hot: list[int], config: SplittingConfig = CONFIG, step: int = 1):
    rng = torch.Generator().manual_seed(0)
    return clone_split_prune(parameters, measured(parameters, hot), config, step, 1.0, rng)


def test_small_splats_are_cloned_and_large_ones_split():
    parameters = opaque_cloud(100)
    parameters["log_scales"][5] = math.log(0.2)
    change = changed(parameters, [3, 5])
    assert change.source.tolist() == [*range(5), *range(6, 100), 3, 5, 5]
    assert change.fresh.nonzero().squeeze(1).tolist() == [99, 100, 101]
    for name, value in change.parameters.items():
        assert torch.equal(value[99], parameters[name][3])
    children = change.parameters["log_scales"][100:].exp()
    torch.testing.assert_close(children, torch.full((2, 3), 0.2 / 1.6).double())
    offsets = change.parameters["means"][100:] - parameters["means"][5]
    assert 0 < offsets.abs().min() and offsets.abs().max() < 0.8 and not torch.equal(*offsets)


def test_children_scatter_as_their_parent():
    parameters = {name: value[:1].repeat_interleave(3000, 0) for name, value in made.cloud(2).items()}
    parameters["log_scales"][:] = torch.tensor([0.3, 0.2, 0.15]).double().log()
    parameters["logits"].fill_(2.0)
    change = clone_split_prune(
        parameters, measured(parameters, list(range(3000))), replace(CONFIG, dense_share=0.05), 1, 9.0,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    axes = rotation_matrices(parameters["quaternions"][0]) * parameters["log_scales"][0].exp()
    scatter = torch.cov((change.parameters["means"] - parameters["means"][0]).T)
    torch.testing.assert_close(scatter, axes @ axes.T, rtol=0.1, atol=4e-3)


@pytest.mark.parametrize("cap", [100, 102, 105, 1000])
def test_the_largest_gradients_get_the_room_under_the_cap(cap: int):
    parameters = opaque_cloud(100)
    change = changed(parameters, [10, 20, 30, 40], replace(CONFIG, cap=cap))
    assert len(change.source) == min(104, cap)
    assert sorted(change.source[100:].tolist()) == [10, 20, 30, 40][4 - min(4, cap - 100) :]


def test_pruned_are_transparent_large_and_stray_splats():
    parameters = opaque_cloud(100)
    parameters["logits"][1] = -6.0
    parameters["log_scales"][2] = math.log(0.11)
    parameters["means"][3] = torch.tensor([0.0, 0.0, 1.1])
    statistics = measured(parameters, [])
    statistics.radius[0, 4] = 0.3
    limited = replace(CONFIG, max_radius=0.2, max_radius_from=10)
    for config, step, gone in ((CONFIG, 11, {1, 3}), (limited, 10, {1, 3}), (limited, 11, {1, 2, 3, 4})):
        change = clone_split_prune(parameters, statistics, config, step, 1.0, torch.Generator())
        assert set(range(100)) - set(change.source.tolist()) == gone and not change.fresh.any()


def test_one_splat_always_stays():
    parameters = opaque_cloud(5)
    parameters["logits"][:] = torch.tensor([-9.0, -8, -7, -8, -9])
    change = changed(parameters, [])
    assert change.source.tolist() == [2]


def test_a_reset_limits_opacities():
    parameters = made.cloud(50)
    opacities = torch.sigmoid(reset_logits(parameters, 0.05))
    torch.testing.assert_close(opacities, torch.sigmoid(parameters["logits"]).clamp(max=0.05))


def test_changes_and_resets_have_steps():
    config = SplittingConfig()  # of 3D Gaussian Splatting; configs/published has others
    steps = range(1, 20_000)
    assert [step for step in steps if config.densifies_at(step)] == list(range(600, 15_000, 100))
    assert [step for step in steps if config.resets_at(step)] == [3000, 6000, 9000, 12000]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cap": 0}, "cap must be at least 1"),
        ({"cap": 2_000_000}, "cap must be at most 1,000,000"),
        ({"gradient": 0.0}, "gradient must be positive"),
        ({"min_opacity": 1.0}, "min_opacity must lie in"),
        ({"max_radius": -1.0}, "max_radius must be positive or be null"),
    ],
)
def test_wrong_settings_are_refused(setting: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SplittingConfig(**setting)
