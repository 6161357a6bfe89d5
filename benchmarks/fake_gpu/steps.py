"""Take training steps on the fake GPU.

  python -m benchmarks.fake_gpu.steps CONFIG [KEY=VALUE ...] [--prior sd21|mvdream] [--rays SHARE]

Prints the cost of one step by part, and the source lines at which the host waits. Without --prior it loads
the config's folder; with it, it creates a model of the published size without weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from amortized import transfer
from amortized.commands.compose import RunConfig, build_bank, guidance_of, load_corpus
from amortized.config import load_config
from amortized.encodings import triton_grid
from amortized.guidance import Guidance
from amortized.parallel import DDPStrategy, World
from amortized.priors import DTYPES, StableDiffusionPrior, graphs, load_prior
from amortized.priors.loading import should_use_graphs
from amortized.rendering import lattice
from amortized.training import Trainer, objective, teachers
from amortized.training.batches import TrainingBatch
from amortized.training.metering import Cost
from benchmarks import sizes
from benchmarks.fake_gpu.machine import CUDA, IN_USE, FakeGPU, on_gpu
from benchmarks.fake_gpu.pretend import pretend
from generators.environment import WithEnvironment

PRIORS = {
    "sd21": sizes.SD21,
    "mvdream": sizes.MVDREAM,
    "tiny-sd": sizes.TINY_SD,
    "tiny-mvdream": sizes.TINY_MVDREAM,
}
RAYS = 0.6  # rendered share of all rays, for an object that fills most of the image
SECTIONS: tuple[tuple[Any, str, str], ...] = (
    (objective, "render", "render"),
    (StableDiffusionPrior, "encode", "encode"),
    (StableDiffusionPrior, "decode", "decode"),
    (StableDiffusionPrior, "predict_noise", "denoiser"),
    (Guidance, "__call__", "guidance"),
    (Tensor, "backward", "backward"),
    (DDPStrategy, "update", "update"),
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The recorded costs and waits of a training step."""

    costs: dict[str, Cost]  # by section; "step" is the total
    waits: Counter[tuple[str, str]]  # (kind, source lines), of the training thread
    waits_ahead: Counter[tuple[str, str]]  # of the prefetch thread, which do not delay the step
    resident: int  # bytes before the step: weights and moments
    copied: int  # bytes sent to the GPU in it


def take_step(config: RunConfig, prior: str | None = None, *, rays: float = RAYS, number: int = 1) -> Step:
    """Take step `number` of a run, like `Trainer.train`; call `pretend` first.

    prior  one of PRIORS, in the config's precision; None loads the config's folder
    rays   the rendered share of all rays; on a GPU it depends on the object
    """
    size = config.trainer.views_per_prompt * config.trainer.max_render_size**2
    gpu = FakeGPU(integer=max(1, int(rays * size)))
    prefetch_waits: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder, gpu, _instrumented(), _without_constants():
        trainer = _trainer(replace(config, output=folder), prior)

        def get(step: int, part: int) -> TrainingBatch:
            """Prepare the batch here, but count its waits as those of the prefetch thread."""
            before = gpu.waits.copy()
            with gpu.outside():
                batch = trainer.prepare(step, part)
            prefetch_waits.update(gpu.waits - before)
            gpu.waits = before
            return batch

        generator = trainer.state.generator
        generator.forward = _in_section("generator", generator.forward)
        with mock.patch.object(trainer.prefetcher, "get", get):
            trainer.step(number - 1)  # creates moments, sends constants
            resident = gpu.live
            gpu.costs.clear()
            gpu.waits.clear()
            prefetch_waits.clear()
            gpu.copied = 0
            with gpu.section("step"):
                trainer.step(number)
    return Step(
        costs=gpu.costs,
        waits=gpu.waits,
        waits_ahead=prefetch_waits,
        resident=resident,
        copied=gpu.copied,
    )


def _trainer(config: RunConfig, prior_name: str | None) -> Trainer:
    """Build the trainer like `amortized.commands.compose`."""
    if prior_name is None:
        prior = load_prior(config.prior, CUDA)
    else:
        prior = sizes.random_prior(PRIORS[prior_name], device=CUDA, dtype=DTYPES[config.prior.dtype])
        prior.graphs = should_use_graphs(config.prior, CUDA)
    bank, width = build_bank(config, prior, CUDA)
    generator = config.generator.build(text_dim=width)
    if config.environment is not None:
        generator = WithEnvironment(generator, config.environment.build(width))
    corpus = load_corpus(config)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    return Trainer(
        config,
        world=World(device=CUDA),
        corpus=corpus,
        guidance=guidance,
        bank=bank,
        generator=generator.to(CUDA),
    )


@contextmanager
def _instrumented() -> Iterator[None]:
    """Context: count the parts of a step as sections, and replace the Triton kernels."""
    with ExitStack() as patches:
        for owner, name, section in SECTIONS:
            patches.enter_context(mock.patch.object(owner, name, _in_section(section, getattr(owner, name))))
        for kernel in ("_forward", "_backward"):
            patches.enter_context(mock.patch.object(triton_grid, kernel, _Kernel()))
        patches.enter_context(mock.patch.object(graphs, "CALLS_BEFORE_CAPTURE", 0))
        # Fake weights have no values to hash.
        patches.enter_context(mock.patch.object(teachers, "fingerprint_of", lambda prior: ""))
        yield


def _in_section(section: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with IN_USE[-1].section(section):
            return function(*args, **kwargs)

    return wrapped


class _Kernel:
    """A stand-in for a hash grid kernel that checks its inputs and counts the bytes it would move."""

    def __getitem__(self, programs: tuple[int, int]) -> Callable[..., None]:
        def launch(points: Tensor, *others: Any, F: int, SIZE: int) -> None:
            for tensor in (points, *(x for x in others if isinstance(x, Tensor))):
                assert on_gpu(tensor) and tensor.is_contiguous(), (tensor.shape, tensor.device)
            corners = len(points) * programs[1] * 8
            IN_USE[-1].charge(traffic=4.0 * (len(points) * 3 + corners * F + corners * F / 8))

        return launch


@contextmanager
def _without_constants() -> Iterator[None]:
    """Context: clear the caches of device constants, which must not outlive their fake GPU."""
    caches = (transfer._constant, transfer._side_stream, lattice._vertices_on)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def as_text(step: Step) -> str:
    """Return tables of the costs and of the waits."""
    lines = [f"{'part':10s} {'TFLOP':>9s} {'GB moved':>9s} {'operations':>10s} {'peak GiB':>9s}"]
    for name, cost in step.costs.items():
        lines.append(
            f"{name:10s} {cost.flops / 1e12:9.3f} {cost.traffic / 1e9:9.2f} {cost.operations:10,d} "
            f"{cost.peak / 2**30:9.2f}"
        )
    lines.append(f"{step.resident / 2**30:.2f} GiB before the step, {step.copied / 2**20:.2f} MiB sent in it")
    for title, waits in (("the step", step.waits), ("preparing the next batch", step.waits_ahead)):
        lines.append(f"waits of {title}: {sum(waits.values())}")
        lines += [f"  {times:3d} x {kind:6s} {source}" for (kind, source), times in sorted(waits.items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fake_gpu.steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--prior", choices=tuple(PRIORS))
    parser.add_argument("--rays", type=float, default=RAYS, help="rendered share (%(default)s)")
    args = parser.parse_intermixed_args()
    pretend()
    config = load_config(RunConfig, args.config, args.overrides)
    print(as_text(take_step(config, args.prior, rays=args.rays)))


if __name__ == "__main__":
    main()
