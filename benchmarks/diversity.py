"""Diversity: how many different objects a prompt that leaves a word open becomes.

The run has learned "a cube" or "something red" from a corpus such as shapes-open, with a generator that takes
z. Each prompt is generated with 16 z's, each rendered from another side, like the prior's samples, and
classified by the CLIP among the 64 shape-color prompts. Right: the share of assets whose class the prompt
allows. Outcomes: the number of different classes among them.

The effect of guidance alone: the same for latents that no generator shares, all starting from gray.
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
from amortized.generation import z_of, z_width
from amortized.guidance.playground import optimize
from amortized.priors import ddim
from amortized.random import normal
from amortized.rendering import render
from amortized.types import Cameras
from benchmarks.studies import compared
from corpora.shapes.grammar import describe, sentence, singles

ASSETS = 16


def measure(
    runs: Mapping[str, Sequence[Path]], alone: Mapping[str, Sequence[RunConfig]]
) -> list[dict[str, object]]:
    """A row for each method, given its runs of several seeds; for latents alone by each guidance of `alone`;
    and for the prior's own sampler: all with differences to the first.

    Every prompt of every seed is a sample of the intervals.
    """
    first, of_first = next(iter(runs.items()))
    scorer = load_clip(load_config(RunConfig, of_first[0] / "config.yaml").evaluation.clip)
    makers = {name: [assets_of(run, ASSETS) for run in seeds] for name, seeds in runs.items()}
    makers |= {
        f"{name}, latents alone": [latents_of(config, ASSETS) for config in seeds]
        for name, seeds in alone.items()
    }
    makers["the prior's sampler"] = [samples_of(run, ASSETS) for run in of_first]
    found = {name: score(images, scorer) for name, images in makers.items()}
    rows = []
    for name, columns in found.items():
        row: dict[str, object] = {"variant": name}
        for column, values in columns.items():
            row |= compared(column, values, None if name == first else found[first][column], first)
        rows.append(row)
    return rows


@torch.no_grad()
def assets_of(run: Path, num_assets: int) -> dict[str, Tensor]:
    """Images [assets, H, W, 3] of each prompt of a run, asset i from azimuth 360 i / assets."""
    config = load_config(RunConfig, run / "config.yaml")
    corpus = load_corpus(config)
    _, bank, generator = build_parts(config, torch.device("cpu"))
    load_generator(run, generator.eval())
    look, cameras = config.evaluation, one_each(config, num_assets)
    grey, found = torch.full((num_assets, 1, 3), look.background), {}
    for prompt in (corpus[i] for i in range(len(corpus))):
        z = torch.cat(
            [
                z_of([prompt], z_width(generator), config.seed, config.trainer.seeds_per_prompt, number)
                for number in range(num_assets)
            ]
        )
        found[prompt.text] = render(
            generator(bank.generator_text([prompt.text] * num_assets), z),
            cameras,
            look.image_size,
            look.image_size,
            config=config.renderer,
            background=grey,
            training=False,
            sharpness=geometric_at(config.trainer.sharpness, 1.0),
        ).rgb[:, 0]
    return found


def latents_of(config: RunConfig, num_assets: int) -> dict[str, Tensor]:
    """Images [assets, H, W, 3] by a run's guidance in half its steps, each with its own latents."""
    corpus, found = load_corpus(config), {}
    for index in range(len(corpus)):
        # New parts for each prompt: a reference model learns one prompt only.
        prior, bank, _ = build_parts(config, torch.device("cpu"))
        guidance = guidance_of(config, prior, bank, len(corpus.trained))
        sides = one_each(config, num_assets)
        grey = torch.full((num_assets, prior.image_size, prior.image_size, 3), 0.5)
        ends = optimize(
            guidance,
            prior.encode(grey),
            bank.prior_text([corpus[index].text] * num_assets, sides),
            sides,
            steps=config.trainer.steps // 2,
            learning_rate=0.05,
            seed=config.seed,
        )
        found[corpus[index].text] = prior.decode(ends)
    return found


def one_each(config: RunConfig, num_assets: int) -> Cameras:
    """Cameras [assets, 1], asset i from azimuth 360 i / assets."""
    look = config.evaluation
    sides = orbit(1, num_assets, elevation_deg=20, distance=look.distance, fovy_deg=look.fovy_deg)
    return Cameras(**{name: value.transpose(0, 1) for name, value in vars(sides).items()})


@torch.no_grad()
def samples_of(run: Path, num_assets: int) -> dict[str, Tensor]:
    """Samples [assets, H, W, 3] of the run's prior, with the same view words."""
    config = load_config(RunConfig, run / "config.yaml")
    corpus = load_corpus(config)
    prior, bank, _ = build_parts(config, torch.device("cpu"))
    found, sides = {}, one_each(config, num_assets)
    for index in range(len(corpus)):
        told = bank.prior_text([corpus[index].text] * num_assets, sides)
        noise = [normal(prior.latent_shape, config.seed, "diversity", index, i) for i in range(num_assets)]
        latents = ddim(prior, torch.stack(noise), told.positive, told.unconditional, num_steps=25, cfg=2.0)
        found[corpus[index].text] = prior.decode(latents)
    return found


def score(runs: Sequence[Mapping[str, Tensor]], scorer: ClipScorer) -> dict[str, list[float]]:
    """Of each prompt of each run: how many different right outcomes, and the share of right ones."""
    names = [sentence(description) for description in singles()]
    texts = scorer.encode_texts(names)
    found: dict[str, list[float]] = {"outcomes": [], "right": []}
    for run in runs:
        for prompt, assets in run.items():
            named = _named(assets, texts, scorer)
            right = [name for name in named if allows(prompt, names[name])]
            found["outcomes"].append(len(set(right)))
            found["right"].append(len(right) / len(named))
    return found


def _named(assets: Tensor, texts: Tensor, scorer: ClipScorer) -> list[int]:
    """Which text each of the images [N, H, W, 3] is."""
    return (scorer.encode_images(assets) @ texts.T).argmax(-1).tolist()


def allows(prompt: str, name: str) -> bool:
    """Whether a sentence that leaves a word open may become the object named."""
    wanted, found = describe(prompt), describe(name)
    if wanted is None or found is None:
        return False
    asked, got = wanted.items[0], found.items[0]
    return asked.shape in (None, got.shape) and asked.color in (None, got.color)
