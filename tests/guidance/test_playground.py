"""The playground: images that get better, sheets of the right shape, errors of one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import plain_text
from amortized.config import load_config
from amortized.guidance import METHODS, Guidance, published
from amortized.guidance.playground import (
    CONFIGS,
    ROWS,
    PlaygroundConfig,
    draws_of,
    main,
    optimize,
    recommended,
)
from amortized.priors import GaussianMixturePrior
from amortized.types import TextCondition
from tests.tiny_sd import make_tiny_sd


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd"))


def weights(*values: float) -> TextCondition:
    pooled = torch.tensor([values])
    return TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(1, 1, dtype=torch.bool))


def test_sds_at_scale_one_goes_to_what_the_text_names():
    means = torch.stack([torch.full((1, 2, 2), value) for value in (-2.0, 2.0)])
    prior = GaussianMixturePrior(means, torch.tensor([0.3, 0.3]))
    text = plain_text(expand_row(weights(1e-3, 1.0), 3), weights(1.0, 1.0))
    guidance = Guidance(prior, published("sds", guidance_scale=1.0))
    seen = []
    end = optimize(
        guidance, torch.zeros(3, 1, 2, 2), text, None, steps=150, learning_rate=0.05, seed=0,
        each=lambda step, latents: seen.append((step, latents.mean().item())),
    )  # fmt: skip
    assert (end - 2.0).abs().max() < 0.5 and [step for step, _ in seen] == list(range(1, 151))
    again = optimize(guidance, torch.zeros(3, 1, 2, 2), text, None, steps=150, learning_rate=0.05, seed=0)
    assert torch.equal(end, again)


def test_a_prediction_that_is_no_number_stops_it():
    prior = GaussianMixturePrior(torch.zeros(1, 1, 2, 2), torch.ones(1))
    predict, asked = prior.predict_noise, []

    def broken(noisy, *arguments, **keywords):
        asked.append(len(noisy))
        return predict(noisy, *arguments, **keywords) * (float("nan") if len(asked) == 3 else 1.0)

    prior.predict_noise = broken
    guidance, text = Guidance(prior, published("sds")), plain_text(weights(1.0), weights(1.0))
    with pytest.raises(ValueError, match="step 3 of 9: the loss is not finite"):
        optimize(guidance, torch.zeros(1, 1, 2, 2), text, None, steps=9, learning_rate=0.05, seed=0)
    assert len(asked) == 3


def test_draws_are_each_images_own_and_trajectories_each_assets():
    latents = torch.zeros(4, 1, 2, 2)
    first, second = draws_of(latents, 0, 0, group=2), draws_of(latents, 0, 1, group=2)
    assert len({tuple(row.flatten().tolist()) for row in [*first.noise, *second.noise]}) == 8
    assert len(set(first.keys.tolist() + second.keys.tolist())) == 8
    assert torch.equal(first.seeds, second.seeds) and first.seeds[0] == first.seeds[1] != first.seeds[2]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_a_sheet(folder, tmp_path, method, capsys):
    output = tmp_path / "sheet.png"
    assert main([
        "--method", method, "--prior", str(folder), "--prompt", "a cube", "--output", str(output),
        "images=2", "steps=6", "guidance.t_max=0.5", "guidance.t_min=0.2",
    ]) == 0  # fmt: skip
    assert capsys.readouterr().out.strip() == str(output)
    with Image.open(output) as sheet:
        assert sheet.size == (2 * 16, (ROWS + 1) * 16) and len(sheet.getcolors(10**6)) > 50


@pytest.mark.parametrize("method", METHODS)
def test_the_embedded_prior_gets_what_is_recommended_for_it(method):
    from amortized.commands.compose import RunConfig

    preset = CONFIGS / ("quickstart.yaml" if method == "asd" else f"methods/{method}.yaml")
    config = load_config(PlaygroundConfig, None, recommended(method))
    run = load_config(RunConfig, preset)
    assert config.guidance == run.guidance and config.prior == run.prior


def test_few_steps_are_a_row_each(folder, tmp_path):
    main(["--prior", str(folder), "--output", str(tmp_path / "sheet.png"), "images=3", "steps=2"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 16, (2 + 1) * 16)


def test_a_multi_view_prior_plays_too(tmp_path):
    folder = make_tiny_sd(tmp_path / "mv", num_views=4)
    output = tmp_path / "sheet.png"
    main(["--prior", str(folder), "--prompt", "a cube", "--output", str(output), "images=2", "steps=6"])
    with Image.open(output) as sheet:
        assert sheet.size == (8 * 16, (ROWS + 1) * 16)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "dreams"], "guidance.method must be one of sds, csd"),
        (["steps=0"], "steps must be at least 1 or be null, got 0"),
        (["images=0"], "images must be at least 1, got 0"),
        (["steps=3", "guidance.weight=1e30", "guidance.guidance_scale=1e30"], "step 1 of 3: the loss is not"),
        (["guidance.scale=3"], "unknown key guidance.scale in the overrides; did you mean"),
        (["learning_rate=0"], "learning_rate must be positive"),
        (["--prior", "nowhere/at/all"], "the folder does not exist"),
    ],
)
def test_mistakes_are_named(folder, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        main(["--prior", str(folder), *arguments])
    error = capsys.readouterr().err
    assert left.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1
