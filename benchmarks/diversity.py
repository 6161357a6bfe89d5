"""Measure diversity: how many different objects a prompt produces that leaves the shape or the color open.

The run was trained on "a cube" or "something red", from a corpus such as shapes-open, with a generator that
takes z. Each prompt gets 16 values of z. Each asset is rendered from a different side, like the prior's
samples, and CLIP classifies it among the 64 shape-color prompts. `right` is the share of assets whose class
the prompt allows, `outcomes` the number of different classes among those.

"latents alone" isolates the effect of guidance: it optimizes independent latents that start from gray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.checkpointing import load_generator
from amortized.commands.compose import RunConfig, build_parts, guidance_of, load_corpus
from amortized.config import geometric_at, load_config
from amortized.evaluation import load_clip
from amortized.evaluation.clip import ClipScorer
from amortized.generation import TextTo3D, z_of, z_width
from amortized.guidance.playground import optimize
from amortized.priors import ddim
from amortized.random import normal
from amortized.rendering import render
from amortized.types import Cameras
from benchmarks.studies import compared
from corpora.shapes.grammar import describe, sentence, singles

ASSETS = 16
Images = Mapping[str, Tensor]  # [assets, H, W, 3] by prompt


def measure(
    runs: Mapping[str, Sequence[Path]], alone: Mapping[str, Sequence[RunConfig]]
) -> list[dict[str, object]]:
    """Return a row per method, one per guidance of `alone`, and one for the prior's sampler.

    runs   run folders by method, one per seed; the first method is the baseline of all differences
    alone  run configs by name, one per seed, whose guidance optimizes independent latents

    Intervals sample over every prompt of every seed.
    """
    of_first = next(iter(runs.values()))
    scorer = load_clip(load_config(RunConfig, of_first[0] / "config.yaml").evaluation.clip)
    makers = {name: [assets_of(run, ASSETS) for run in seeds] for name, seeds in runs.items()}
    makers |= {
        f"{name}, latents alone": [latents_of(config, ASSETS) for config in seeds]
        for name, seeds in alone.items()
    }
    makers["the prior's sampler"] = [
        samples_of(load_config(RunConfig, run / "config.yaml"), ASSETS) for run in of_first
    ]
    return rows_of(makers, scorer)


def rows_of(makers: Mapping[str, Sequence[Images]], scorer: ClipScorer) -> list[dict[str, object]]:
    """Return a row per entry of `makers`: scores of each seed's images, compared with the first entry's."""
    first = next(iter(makers))
    scores = {name: score(images, scorer) for name, images in makers.items()}
    rows = []
    for name, columns in scores.items():
        row: dict[str, object] = {"variant": name}
        for column, values in columns.items():
            row |= compared(column, values, None if name == first else scores[first][column], first)
        rows.append(row)
    return rows


@torch.no_grad()
def assets_of(run: Path, num_assets: int) -> dict[str, Tensor]:
    """Return images [assets, H, W, 3] of each prompt of a run, asset i from azimuth 360 i / assets."""
    config = load_config(RunConfig, run / "config.yaml")
    corpus = load_corpus(config)
    _, bank, generator = build_parts(config, torch.device("cpu"))
    load_generator(run, generator.eval())
    evaluation, cameras = config.evaluation, one_camera_per_asset(config, num_assets)
    gray, images = torch.full((num_assets, 1, 3), evaluation.background), {}
    for prompt in (corpus[i] for i in range(len(corpus))):
        z = torch.cat(
            [
                z_of([prompt], z_width(generator), config.seed, config.trainer.seeds_per_prompt, number)
                for number in range(num_assets)
            ]
        )
        images[prompt.text] = render(
            generator(bank.generator_text([prompt.text] * num_assets), z),
            cameras,
            evaluation.image_size,
            evaluation.image_size,
            config=config.renderer,
            background=gray,
            training=False,
            sharpness=geometric_at(config.trainer.sharpness, 1.0),
        ).rgb[:, 0]
    return images


def latents_of(config: RunConfig, num_assets: int) -> dict[str, Tensor]:
    """Return images [assets, H, W, 3] of independent latents, optimized by guidance for half the steps."""
    corpus, images = load_corpus(config), {}
    for index in range(len(corpus)):
        # Rebuilt for each prompt: a reference model here learns a single prompt.
        prior, bank, _ = build_parts(config, torch.device("cpu"))
        guidance = guidance_of(config, prior, bank, len(corpus.trained))
        cameras = one_camera_per_asset(config, num_assets)
        gray = torch.full((num_assets, prior.image_size, prior.image_size, 3), 0.5)
        latents = optimize(
            guidance,
            prior.encode(gray),
            bank.prior_text([corpus[index].text] * num_assets, cameras),
            cameras,
            steps=config.trainer.steps // 2,
            learning_rate=0.05,
            seed=config.seed,
        )
        images[corpus[index].text] = prior.decode(latents)
    return images


def one_camera_per_asset(config: RunConfig, num_assets: int) -> Cameras:
    """Return cameras [assets, 1], asset i from azimuth 360 i / assets."""
    evaluation = config.evaluation
    cameras = orbit(
        1, num_assets, elevation_deg=20, distance=evaluation.distance, fovy_deg=evaluation.fovy_deg
    )
    return Cameras(**{name: value.transpose(0, 1) for name, value in vars(cameras).items()})


@torch.no_grad()
def image_of(run: Path, number: int, num_assets: int) -> Tensor:
    """Return an image [H, W, 3] of the one object of a run, from azimuth 360 number / num_assets."""
    model = TextTo3D.from_run(run, device="cpu")
    config = load_config(RunConfig, run / "config.yaml")
    cameras = one_camera_per_asset(config, num_assets)
    row = Cameras(**{name: value[number : number + 1] for name, value in vars(cameras).items()})
    rendered = model.images(
        model.scenes(str(config.prompt)),
        row,
        config.evaluation.image_size,
        background=config.evaluation.background,
    )
    return rendered.rgb[0, 0]


@torch.no_grad()
def samples_of(config: RunConfig, num_assets: int) -> dict[str, Tensor]:
    """Return samples [assets, H, W, 3] of a run's prior, with the same view words."""
    corpus = load_corpus(config)
    prior, bank, _ = build_parts(config, torch.device("cpu"))
    images, cameras = {}, one_camera_per_asset(config, num_assets)
    for index in range(len(corpus)):
        text = bank.prior_text([corpus[index].text] * num_assets, cameras)
        noise = [normal(prior.latent_shape, config.seed, "diversity", index, i) for i in range(num_assets)]
        latents = ddim(prior, torch.stack(noise), text.positive, text.unconditional, num_steps=25, cfg=2.0)
        images[corpus[index].text] = prior.decode(latents)
    return images


def score(runs: Sequence[Mapping[str, Tensor]], scorer: ClipScorer) -> dict[str, list[float]]:
    """Return `outcomes` and `right` (see the module) of each prompt of each run."""
    names = [sentence(description) for description in singles()]
    texts = scorer.encode_texts(names)
    scores: dict[str, list[float]] = {"outcomes": [], "right": []}
    for run in runs:
        for prompt, assets in run.items():
            classes = _classify(assets, texts, scorer)
            right = [name for name in classes if allows(prompt, names[name])]
            scores["outcomes"].append(len(set(right)))
            scores["right"].append(len(right) / len(classes))
    return scores


def _classify(assets: Tensor, texts: Tensor, scorer: ClipScorer) -> list[int]:
    """Return the index of the best-matching text for each of the images [N, H, W, 3]."""
    return (scorer.encode_images(assets) @ texts.T).argmax(-1).tolist()


def allows(prompt: str, name: str) -> bool:
    """Return whether a prompt that leaves a word open allows the object `name`."""
    prompt_scene, named_scene = describe(prompt), describe(name)
    if prompt_scene is None or named_scene is None:
        return False
    requested, actual = prompt_scene.items[0], named_scene.items[0]
    return requested.shape in (None, actual.shape) and requested.color in (None, actual.color)
