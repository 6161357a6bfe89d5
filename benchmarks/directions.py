"""Measure the direction of guidance: the cosine of a method's gradient with the true residual, by timestep.

  python -m benchmarks.directions [CONFIG] [--methods asd sds] [--scales 1.5 7.5] [--run DIR] [KEY=VALUE ...]

The residual is the latents of the render minus those of the true object, so a method whose descent leads
straight to the truth has cosine 1. Within minutes and without training, this shows which timesteps of a prior
are useful. States: a ball in each object's color and, with --run, the scenes of that run's generator.
Reference models are untrained here. The corpus must know its objects, as the embedded ones do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.checkpointing import load_generator
from amortized.commands.compose import RunConfig, build_parts, guidance_of, load_corpus
from amortized.conditioning.views import ViewText
from amortized.config import geometric_at, load_config, value_at
from amortized.files import atomic_write_text
from amortized.generation import z_of, z_width
from amortized.guidance import METHODS, Guidance, GuidanceConfig, published
from amortized.guidance.playground import draws_of
from amortized.rendering import render
from amortized.types import Cameras, GroundTruth, Prompt, Scene
from benchmarks.rendering import TrueScene
from benchmarks.timing import markdown

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
VIEWS, REPEATS = 4, 2


class Ball:
    """The ball that training starts from, in the color of an object."""

    front_mark, kind = None, "ball"

    def __init__(self, truth: GroundTruth, radius: float = 0.5) -> None:
        self.truth, self.radius = truth, radius

    def sdf(self, points: Tensor) -> Tensor:
        return points.norm(dim=-1) - self.radius

    def color(self, points: Tensor) -> Tensor:
        return self.truth.color(points)


def cosines(
    guidance: Guidance, latents: Tensor, true: Tensor, text: ViewText, cameras: Cameras | None, seed: int = 0
) -> Tensor:
    """Return the cosine of each image [B], averaged over REPEATS draws of noise and timestep.

    latents, true: [B, C, h, w], of the state and of the true objects
    """
    values = []
    for repeat in range(REPEATS):
        variable = latents.detach().requires_grad_()
        draws = draws_of(latents, seed, repeat, guidance.prior.views_per_group)
        output = guidance(variable, text, draws, 0.5, cameras, learn=False)
        (gradient,) = torch.autograd.grad(output.loss, variable)
        residual = (latents - true).flatten(1)
        values.append(torch.cosine_similarity(gradient.flatten(1), residual, dim=1))
    return torch.stack(values).mean(0)


def at_time(config: GuidanceConfig, scale: float, t: float) -> GuidanceConfig:
    """Return the method's config at one timestep and scale, with the shift of the middle of a run."""
    start = value_at(config.t_min, 0.5) if config.shift_start is None else config.shift_start
    return replace(config, guidance_scale=scale, t_min=t, t_max=t, shift_start=start)


def measure(config: RunConfig, methods: list[str], scales: list[float], run: Path | None) -> list[dict]:
    """Return a row per state, method and scale, with the mean cosine at each of TIMES.

    Raises ValueError if the corpus does not know its objects.
    """
    corpus, device = load_corpus(config), torch.device("cpu")
    prompts = [corpus[i] for i in range(min(len(corpus), 16))]
    truths = [truth for prompt in prompts if (truth := corpus.truth(prompt)) is not None]
    if len(truths) < len(prompts):
        raise ValueError(f"{config.corpus} has no ground truth for its prompts: use an embedded corpus")
    cameras = orbit(len(prompts), VIEWS, elevation_deg=20, distance=2.6, fovy_deg=38, start_azimuth_deg=30)
    rows = []
    for method in methods:
        # Rebuilt for each method, since a reference model may add an adapter to the prior.
        method_config = replace(config, guidance=published(method, weight=1.0))
        prior, bank, generator = build_parts(method_config, device)
        guidance = guidance_of(method_config, prior, bank, len(corpus.trained))
        text = bank.prior_text([prompt.text for prompt in prompts], cameras)
        states: dict[str, Scene] = {"ball in its color": TrueScene([Ball(truth) for truth in truths])}
        if run is not None:
            load_generator(run, generator.eval())
            states[run.name] = _scene_of(generator, prompts, config, bank)
        true = _latents(config, guidance.prior, TrueScene(truths), cameras)
        for state, scene in states.items():
            latents = _latents(config, guidance.prior, scene, cameras)
            for scale in scales:
                row = {"state": state, "method": method, "scale": scale}
                for t in TIMES:
                    guidance_config = at_time(guidance.config, scale, t)
                    guidance_at_t = Guidance(guidance.prior, guidance_config, guidance.learned)
                    row[str(t)] = round(cosines(guidance_at_t, latents, true, text, cameras).mean().item(), 2)
                rows.append(row)
    return rows


@torch.no_grad()
def _scene_of(generator, prompts: list[Prompt], config: RunConfig, bank) -> Scene:
    z = z_of(prompts, z_width(generator), config.seed, config.trainer.seeds_per_prompt)
    return generator(bank.generator_text([prompt.text for prompt in prompts]), z)


@torch.no_grad()
def _latents(config: RunConfig, prior, scene: Scene, cameras: Cameras) -> Tensor:
    gray = torch.full((*cameras.azimuth_deg.shape, 3), 0.6)
    size, sharpness = config.trainer.max_render_size, geometric_at(config.trainer.sharpness, 1.0)
    image = render(
        scene,
        cameras,
        size,
        size,
        config=config.renderer,
        background=gray,
        sharpness=sharpness,
        training=False,
    )
    return prior.encode(image.rgb.flatten(0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.directions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--scales", nargs="+", type=float, default=[1.5, 7.5])
    parser.add_argument("--run", type=Path, help="a trained run, as another state")
    args = parser.parse_intermixed_args()
    config = load_config(RunConfig, args.config, args.overrides)
    rows = measure(config, args.methods, args.scales, args.run)
    print(markdown(rows))
    path = Path("outputs/benchmarks/directions.json")
    atomic_write_text(path, json.dumps(rows, indent=2) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
