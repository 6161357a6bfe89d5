"""Where a training step's time goes, and two ratios against stated baselines, in one run.

  python -m benchmarks [CONFIG] [KEY=VALUE ...]

Prints a table and writes outputs/benchmarks/step.json. Baselines: a render that marches densely
(the same field at `4 * (num_coarse + num_fine)` intervals on every ray), and a denoiser asked once
per branch instead of once for all.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from amortized import config as settings
from amortized.files import atomic_write_text
from amortized.rendering import render
from amortized.training import Trainer, World
from amortized.training.schedules import geometric_at
from train import RunConfig, compose, corpus_of


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of an action after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def matmul_gflops(size: int = 1024) -> float:
    """Measured float32 matrix speed, to compare machines by."""
    a = torch.randn(size, size)
    return 2 * size**3 / seconds(lambda: a @ a) / 1e9


def measure(config: RunConfig) -> dict[str, float]:
    world = World()
    guidance, bank, generator = compose(config, world.device)
    trainer = Trainer(
        config, world=world, corpus=corpus_of(config), guidance=guidance, bank=bank, generator=generator
    )
    batch = trainer.sampler.batch(0, trainer.slots[0], trainer.slots_per_step)
    texts = [trainer.prompt(index).text for index in batch.prompt_indices]
    size = config.trainer.render_size
    sharpness = geometric_at(config.trainer.sharpness, 0.5)

    def look(training: bool, renderer=config.renderer, u=batch.stratification):
        scene = trainer.state.generator(trainer.bank.get(texts))
        return render(
            scene,
            batch.cameras,
            size,
            size,
            config=renderer,
            background=batch.background,
            sharpness=sharpness,
            training=training,
            u=u,
        )

    image = look(True).rgb.detach().flatten(0, 1).requires_grad_()
    latents = guidance.prior.encode(image).detach().requires_grad_()
    view_text = trainer.bank.views(texts, batch.cameras)

    def per_branch() -> None:
        for _ in range(guidance.branches_per_image(len(view_text.negatives))):
            guidance.prior.predict_noise(
                batch.draws.noise, torch.full((len(latents),), 500), view_text.positive
            )

    def at_once() -> None:
        guidance(latents, view_text, batch.draws, 0.5, batch.cameras)

    dense = replace(
        config.renderer, num_coarse=4 * (config.renderer.num_coarse + config.renderer.num_fine), num_fine=0
    )
    with torch.no_grad():
        ours, marched = look(False, u=None), look(False, dense, None)
        one_by_one = seconds(per_branch, 3)
    error = (ours.rgb - marched.rgb).square().mean().clamp(min=1e-12)
    times = {
        "sample the batch": seconds(
            lambda: trainer.sampler.batch(1, trainer.slots[0], trainer.slots_per_step)
        ),
        "generator and render, forward": seconds(lambda: look(True)),
        "generator and render, forward and backward": seconds(lambda: look(True).rgb.sum().backward()),
        "encode, forward and backward": seconds(lambda: guidance.prior.encode(image).sum().backward()),
        "guidance (denoiser)": seconds(at_once),
        "whole step": seconds(lambda: trainer._step(0, False)),
    }
    return {
        **{f"{name}, ms": 1000 * value for name, value in times.items()},
        "field evaluations per image": ours.num_evaluations / len(image),
        "field evaluations, dense / ours": marched.num_evaluations / ours.num_evaluations,
        "PSNR against dense, dB": -10 * error.log10().item(),
        "denoiser, a call per branch / one call": one_by_one / times["guidance (denoiser)"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    figures = measure(settings.load(RunConfig, given.config, given.overrides))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul_gflops": round(matmul_gflops(), 1),
    }
    print("  ".join(f"{key}={value}" for key, value in machine.items()))
    for name, value in figures.items():
        print(f"{name:<46} {value:12.1f}")
    path = Path("outputs/benchmarks/step.json")
    atomic_write_text(path, json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
