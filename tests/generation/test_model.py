"""TextTo3D: any number of prompts in one pass, variants by seed, interpolation, images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from amortized.conditioning import TextBank
from amortized.encodings import HashGridConfig
from amortized.generation import SceneConfig, TextTo3D, asset_z, sharpness_at, z_of
from amortized.generation.card import model_card
from amortized.names import text_hash
from amortized.rendering import RendererConfig
from amortized.types import Prompt
from generators.hyper_ingp import HyperINGPConfig
from tests.training.toy import TEXTS, ColorEncoder

POINTS = torch.rand(1, 40, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def model_of(z_dim: int = 0, seeds_per_prompt: int | None = None) -> TextTo3D:
    sizes = {"num_levels": 2, "features_per_level": 2, "log2_table_size": 8, "base_resolution": 4}
    grid = HashGridConfig(**sizes, growth=2.0)
    torch.manual_seed(0)
    generator = HyperINGPConfig(grid=grid, hidden=(8,), hyper_hidden=8, z_dim=z_dim).build(len(TEXTS))
    with torch.no_grad():  # a new generator makes nearly the same ball of every text
        for parameter in generator.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    renderer = RendererConfig(num_coarse=8, num_fine=6, lattice=8)
    config = SceneConfig(renderer=renderer, sharpness=20.0, seed=5, seeds_per_prompt=seeds_per_prompt)
    return TextTo3D(generator, TextBank(ColorEncoder()), config)


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
@pytest.mark.parametrize("z_dim", [0, 2])
def test_a_batch_of_prompts_equals_its_prompts_one_by_one(num_prompts: int, z_dim: int) -> None:
    model, prompts = model_of(z_dim), TEXTS[:num_prompts]
    together = model.scenes(prompts).sdf(POINTS.expand(num_prompts, -1, -1))
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(together[row : row + 1], model.scenes(prompt).sdf(POINTS))
    cameras = model.orbit(num_views=4)
    images = model.images(model.scenes(prompts), model.orbit(num_prompts, 4), 8).rgb
    assert images.shape == (num_prompts, 4, 8, 8, 3) and not images.requires_grad
    assert torch.equal(images, model.images(model.scenes(prompts), cameras, 8).rgb)  # serve all scenes
    for row, prompt in enumerate(prompts):
        one = model.images(model.scenes([prompt]), cameras, 8).rgb
        torch.testing.assert_close(images[row : row + 1], one, rtol=1e-4, atol=1e-5)


def test_cameras_of_another_number_of_prompts_are_refused() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="the scene has 3 prompts, but the cameras 2"):
        model.images(model.scenes(TEXTS[:3]), model.orbit(2, 1), 8)


def test_seeds_are_variants_of_a_generator_that_takes_z() -> None:
    model = model_of(z_dim=2)
    first, again, second = (model.scenes("red", seed).sdf(POINTS) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, second)
    plain = model_of()
    assert torch.equal(plain.scenes("red", 0).sdf(POINTS), plain.scenes("red", 1).sdf(POINTS))


@pytest.mark.parametrize("seeds_per_prompt", [None, 3])
def test_a_batch_may_have_a_seed_for_each_prompt(seeds_per_prompt: int | None) -> None:
    model, prompts, seeds = (
        model_of(z_dim=2, seeds_per_prompt=seeds_per_prompt),
        ["red", "blue", "red"],
        [4, 0, 1],
    )
    together = model.scenes(prompts, seeds).sdf(POINTS.expand(3, -1, -1))
    for row, prompt, seed in zip(together, prompts, seeds, strict=True):
        torch.testing.assert_close(row, model.scenes(prompt, seed).sdf(POINTS)[0])


def test_a_text_gets_the_z_of_the_same_prompt_in_a_corpus() -> None:
    model = model_of(z_dim=2)
    prompt = Prompt(id=text_hash("red"), text="red")
    assert torch.equal(model.scenes("red").sdf(POINTS), model.scenes([prompt]).sdf(POINTS))
    assets = model_of(z_dim=2, seeds_per_prompt=3)
    assert torch.equal(assets.z_of([prompt, prompt], 4), asset_z(5, 1, 2).expand(2, -1))
    assert torch.equal(assets.z_of([prompt], 1), z_of([prompt], 2, 5, 3, number=1))


def test_interpolation_runs_from_one_prompt_to_the_other() -> None:
    model = model_of()
    between = model.interpolate("red", "blue", 3).sdf(POINTS.expand(3, -1, -1))
    torch.testing.assert_close(between[:1], model.scenes("red").sdf(POINTS))
    torch.testing.assert_close(between[2:], model.scenes("blue").sdf(POINTS))
    assert not torch.allclose(between[1], between[0]) and not torch.allclose(between[1], between[2])
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        model.interpolate("red", "blue", 1)


def test_images_may_have_any_shape_and_background() -> None:
    model = model_of()
    scene = model.scenes(["red"])
    dark, light = (model.images(scene, model.orbit(), (4, 6), background=gray).rgb for gray in (0.0, 1.0))
    assert dark.shape == (1, 4, 4, 6, 3) and (light >= dark - 1e-6).all() and (light > dark + 0.5).any()


def test_the_sharpness_is_that_of_the_step() -> None:
    assert sharpness_at(30.0, 5, 10) == 30.0
    assert sharpness_at((10.0, 1000.0), 5, 10) == pytest.approx(100.0)


def test_the_card_shows_scores_and_escapes_text(tmp_path: Path) -> None:
    config = {
        "amortized3d": "1.0",
        "generator": {"name": "hyper-ingp"},
        "training": {
            "corpus": "mine|<b>\n`x`",
            "step": 1200,
            "guidance": {"noise": "gaussian", "reference": "guided"},
            "prior": "folder",
        },
        "text_encoder": {"path": "folder", "fingerprint": "float32 abc"},
    }
    assert "Not evaluated" in model_card(tmp_path, "name", config)
    (tmp_path / "evaluation").mkdir()
    metrics = {"iou": {"mean": 0.9, "low": 0.85, "high": 0.95, "n": 3}}
    (tmp_path / "evaluation/results.json").write_text(json.dumps({"metrics": metrics}))
    card = model_card(tmp_path, "name", config)
    assert "| volumetric IoU with the ground truth | 0.900 [0.850, 0.950] |" in card
    metrics["iou"] |= {"low": None, "high": None, "n": 1}  # one prompt has no interval
    (tmp_path / "evaluation/results.json").write_text(json.dumps({"metrics": metrics}))
    assert "| volumetric IoU with the ground truth | 0.900 |" in model_card(tmp_path, "name", config)
    assert r"mine\|\<b\> \`x\`" in card and "| steps | 1,200 |" in card
