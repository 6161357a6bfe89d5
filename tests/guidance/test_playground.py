"""The playground: images improve, sheets have the right shape, errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from amortized.commands.main import main as amortized
from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import plain_text
from amortized.config import load_config
from amortized.guidance import METHODS, Guidance, published
from amortized.guidance.playground import (
    CONFIGS,
    ROWS,
    PlaygroundConfig,
    draws_of,
    optimize,
    recommended,
)
from amortized.priors import GaussianMixturePrior
from amortized.types import TextCondition
from tests.tiny_sd import make_tiny_sd


def main(arguments: list[str]) -> int:
    return amortized(["playground", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd"))


def weights(*values: float) -> TextCondition:
    pooled = torch.tensor([values])
    return TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(1, 1, dtype=torch.bool))


def test_sds_at_scale_one_reaches_the_component_named_by_the_text():
    means = torch.stack([torch.full((1, 2, 2), value) for value in (-2.0, 2.0)])
    prior = GaussianMixturePrior(means, torch.tensor([0.3, 0.3]))
    text = plain_text(expand_row(weights(1e-3, 1.0), 3), weights(1.0, 1.0))
    guidance = Guidance(prior, published("sds", guidance_scale=1.0))
    reported = []
    result = optimize(
        guidance,
        torch.zeros(3, 1, 2, 2),
        text,
        None,
        steps=150,
        learning_rate=0.05,
        seed=0,
        each=lambda step, latents: reported.append(step),
    )
    assert (result - 2.0).abs().max() < 0.5 and reported == list(range(1, 151))
    repeated = optimize(guidance, torch.zeros(3, 1, 2, 2), text, None, steps=150, learning_rate=0.05, seed=0)
    assert torch.equal(result, repeated)


def test_a_nan_prediction_raises():
    prior = GaussianMixturePrior(torch.zeros(1, 1, 2, 2), torch.ones(1))
    predict, calls = prior.predict_noise, []

    def broken(latents_noisy, *arguments, **keywords):
        calls.append(len(latents_noisy))
        return predict(latents_noisy, *arguments, **keywords) * (float("nan") if len(calls) == 3 else 1.0)

    prior.predict_noise = broken
    guidance, text = Guidance(prior, published("sds")), plain_text(weights(1.0), weights(1.0))
    with pytest.raises(ValueError, match="step 3 of 9: the loss is not finite"):
        optimize(guidance, torch.zeros(1, 1, 2, 2), text, None, steps=9, learning_rate=0.05, seed=0)
    assert len(calls) == 3


def test_draws_differ_by_image_and_trajectories_by_asset():
    latents = torch.zeros(4, 1, 2, 2)
    first, second = draws_of(latents, 0, 0, group=2), draws_of(latents, 0, 1, group=2)
    assert len({tuple(row.flatten().tolist()) for row in [*first.noise, *second.noise]}) == 8
    assert len(set(first.keys.tolist() + second.keys.tolist())) == 8
    assert torch.equal(first.seeds, second.seeds) and first.seeds[0] == first.seeds[1] != first.seeds[2]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_sheet(folder, tmp_path, method, capsys):
    output = tmp_path / "sheet.png"
    options = ["--method", method, "--prior", str(folder), "--prompt", "a cube", "--output", str(output)]
    assert main([*options, "images=2", "steps=6", "guidance.t_max=0.5", "guidance.t_min=0.2"]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    with Image.open(output) as sheet:
        assert sheet.size == (2 * 16, (ROWS + 1) * 16) and len(sheet.getcolors(10**6)) > 50


@pytest.mark.parametrize("method", METHODS)
def test_the_embedded_prior_gets_its_recommended_schedule(method):
    from amortized.commands.compose import RunConfig

    preset = CONFIGS / ("quickstart.yaml" if method == "asd" else f"methods/{method}.yaml")
    config = load_config(PlaygroundConfig, None, recommended(method))
    run = load_config(RunConfig, preset)
    assert config.guidance == run.guidance and config.prior == run.prior


def test_fewer_steps_than_rows_give_a_row_each(folder, tmp_path):
    main(["--prior", str(folder), "--output", str(tmp_path / "sheet.png"), "images=3", "steps=2"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 16, (2 + 1) * 16)


def test_a_multi_view_prior_writes_a_sheet(tmp_path):
    folder = make_tiny_sd(tmp_path / "mv", num_views=4)
    output = tmp_path / "sheet.png"
    main(["--prior", str(folder), "--prompt", "a cube", "--output", str(output), "images=2", "steps=6"])
    with Image.open(output) as sheet:
        assert sheet.size == (8 * 16, (ROWS + 1) * 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "dreams"], "guidance.method must be one of sds, csd"),
        (["steps=0"], "steps must be at least 1 or be null, got 0"),
        (["images=0"], "images must be at least 1, got 0"),
        (["guidance.scale=3"], "unknown key guidance.scale in the overrides; did you mean"),
        (["learning_rate=0"], "learning_rate must be positive"),
        (["--prior", "nowhere/at/all"], "the folder does not exist"),
    ],
)
def test_errors_name_the_setting(folder, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--prior", str(folder), *arguments])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in error and len(error.strip().splitlines()) == 1
