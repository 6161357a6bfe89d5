"""Measure one-GPU steps at the size of Stable Diffusion 2.1 and of MVDream, and the public baseline's.

    python -m benchmarks.sd_steps [--device cuda] [--output FILE.json] [--limit SECONDS]

Weights are random and created on the device; generators have their published sizes. On a CPU both are tiny.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from amortized.cameras import orbit
from amortized.commands.compose import RunConfig
from amortized.conditioning import TextBank
from amortized.config import load_config
from amortized.guidance import Guidance
from amortized.parallel import World, join_world
from amortized.priors import StableDiffusionPrior
from amortized.training import Trainer
from benchmarks import ceilings, roofline, sizes
from benchmarks.full_size import max_resident_gib
from benchmarks.public_baseline import PER_PIXEL, PublicBaseline
from benchmarks.steps import StepParts, time_parts
from benchmarks.timing import ResultsFile, now, waits
from corpora import prompt_list
from generators import build_generator

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {"Stable Diffusion 2.1": "published/asd-sd-hyper-ingp-mg15", "MVDream": "hyper-ingp-mvdream"}
# Settings that replace the published sizes on a CPU.
TINY = {
    "hyper-ingp": ("generator.grid.log2_table_size=10", "generator.grid.num_levels=4"),
    "3dconv-net": ("generator.resolution=8", "generator.base_channels=16", "generator.num_features=8"),
    "triplane-transformer": (
        "generator.plane_tokens=4",
        "generator.width=32",
        "generator.num_layers=2",
        "generator.num_heads=2",
    ),
}
TINY_RUN = ("trainer.render_size=16", "renderer.num_coarse=16", "renderer.num_fine=8", "renderer.lattice=12")
PUBLIC_RADIUS = 2.0  # half the side of the field's box in the public code, and of ours here
THINGS = ("a red cube", "an astronaut riding a horse", "a bowl of fruit", "a castle", "a small boat")
COLORS = ("made of wood", "made of glass", "painted blue")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One implementation of the step, at one size."""

    prior: str
    generator: str
    prompts: int
    public: bool = False
    graphs: bool = True  # replay denoiser and encoder as CUDA graphs

    def config(self, device: torch.device) -> RunConfig:
        """Return the preset with this generator, tiny on a CPU."""
        overrides = [f"generator.name={self.generator}", f"trainer.prompts_per_process={self.prompts}"]
        overrides += [f"generator.bounding_radius={PUBLIC_RADIUS}"]
        overrides += [] if device.type == "cuda" else [*TINY[self.generator], *TINY_RUN]
        overrides += ["corpus=in memory", "output=outputs/gpu-check/no-run", f"device={device}"]
        return load_config(RunConfig, ROOT / "configs" / f"{PRESETS[self.prior]}.yaml", overrides)


def cases(numbers: tuple[int, ...]) -> Iterator[Case]:
    """Yield the cases, the most important ones first: time may run out."""
    diffusion, multi_view = PRESETS
    for generator in ("hyper-ingp", "triplane-transformer", "3dconv-net"):
        yield Case(prior=diffusion, generator=generator, prompts=1, public=True)
        if generator == "hyper-ingp":
            yield Case(prior=diffusion, generator=generator, prompts=1, graphs=False)
        for prompts in numbers:
            yield Case(prior=diffusion, generator=generator, prompts=prompts)
        if generator == "hyper-ingp":
            for prompts in numbers:
                yield Case(prior=multi_view, generator=generator, prompts=prompts)


def prior_of(name: str, device: torch.device) -> StableDiffusionPrior:
    """Return the model of that name with random weights in half precision, tiny on a CPU."""
    multi_view, on_cuda = name == "MVDream", device.type == "cuda"
    published = sizes.MVDREAM if multi_view else sizes.SD21
    tiny = sizes.TINY_MVDREAM if multi_view else sizes.TINY_SD
    return sizes.random_prior(published if on_cuda else tiny, device=device, dtype=torch.float16)


def assemble(case: Case, prior: StableDiffusionPrior, device: torch.device) -> Trainer:
    """Build the case's trainer around a prior in memory, like `train.py`."""
    config = case.config(device)
    prior.graphs = case.graphs and device.type == "cuda"
    texts = [f"{thing} {color}" for thing in THINGS for color in COLORS]
    corpus = prompt_list(texts, "in memory")
    bank = TextBank(prior.text_encoder, config.views, device=device)
    # Fill the cache, as in a run's later steps.
    bank.generator_text(texts)
    bank.prior_text(texts, orbit(len(texts), 4, elevation_deg=0.0, distance=1.0, fovy_deg=40.0))
    torch.manual_seed(config.seed)
    generator = build_generator(config.generator, config.environment, prior.text_encoder.width).to(device)
    return Trainer(
        config,
        world=World(device=device),
        corpus=corpus,
        guidance=Guidance(prior, config.guidance),
        bank=bank,
        generator=generator,
    )


def measure_ours(trainer: Trainer, repeats: int) -> dict[str, Any]:
    """Measure the trainer's step, in total and by part."""
    device, number = trainer.world.device, iter(range(10**6))

    def step() -> Any:
        return trainer.step(next(number))

    for _ in range(2):
        step()
    start = now()
    records = [step() for _ in range(repeats)]
    step_seconds = (now() - start) / repeats
    logged = dict(zip(records[-1].names, records[-1].values.tolist(), strict=True))
    sync = sync_columns(step, device)
    pieces = StepParts(trainer=trainer)
    split = time_parts(pieces.step, device, repeats)
    with torch.no_grad():
        evaluations = pieces.render_views(pieces.generate()).num_evaluations
    images = len(pieces.prior_text.positive.pooled)
    return timing_columns(step_seconds, split, images, repeats) | {
        "evaluations per image": round(evaluations / images),
        **sync,
        "finite": logged["loss"] == logged["loss"],
    }


def measure_public(trainer: Trainer, repeats: int) -> dict[str, Any]:
    """Measure the public baseline's step with the same generator, prior and texts."""
    device, pieces = trainer.world.device, StepParts(trainer=trainer)
    baseline = PublicBaseline(
        generator=trainer.state.generator,
        prior=trainer.guidance.prior,  # type: ignore[arg-type]
        size=trainer.config.trainer.largest_phase[2],
    )
    step = partial(baseline.step, pieces.generator_text, pieces.prior_text, pieces.cameras, pieces.z)
    step()
    start = now()
    losses = [step() for _ in range(repeats)]
    step_seconds = (now() - start) / repeats
    return timing_columns(step_seconds, time_parts(step, device, repeats), 1, repeats) | {
        "evaluations per image": PER_PIXEL * baseline.size**2,
        **sync_columns(step, device),
        "finite": bool(torch.stack(losses).isfinite().all()),
    }


def sync_columns(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return how often, and at which lines, the host waits for the GPU in a step; None on a CPU."""
    lines = waits(step) if device.type == "cuda" else None
    return {"host waits per step": None if lines is None else len(lines), "host waits at": lines or []}


def timing_columns(step_seconds: float, split: dict[str, float], images: int, repeats: int) -> dict[str, Any]:
    """Return the times, given in seconds, as columns of a table."""
    return {
        "images": images,
        "steps timed": repeats,
        "step, ms": round(1000 * step_seconds, 2),
        **{f"{name}, ms": round(1000 * value, 2) for name, value in split.items()},
        "images/s": round(images / step_seconds, 2),
    }


def add_floors(rows: list[dict[str, Any]], counted: Path, ceiling: dict[str, float]) -> None:
    """Add a step's lower bound and the ratio to it, for the cases that `benchmarks.roofline` has counted."""
    tflops = ceiling.get("float16, TFLOP/s", ceiling["float32, TFLOP/s"])
    names = dict(zip(PRESETS, roofline.PRESETS, strict=True))
    cases = json.loads(counted.read_text(encoding="utf-8")) if counted.exists() else []
    parts = {(case["prior"], case["generator"], case["prompts"]): case["parts"] for case in cases}
    for row in rows:
        costs = parts.get((names[row["prior"]], row["generator"], row["prompts"]))
        if row["implementation"] == "public" or costs is None:
            continue
        floors = roofline.floor_seconds(costs, tflops=tflops, tbps=ceiling["copy, TB/s"])
        floor = 1000 * sum(floors.values())
        row["floor, ms"] = round(floor, 2)
        row["floor by part, ms"] = {name: round(1000 * seconds, 3) for name, seconds in floors.items()}
        row["step / floor"] = round(row["step, ms"] / floor, 2) if "step, ms" in row else None


def row_of(case: Case, prior: StableDiffusionPrior, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measure a case; an error, such as exhausted memory, goes into the row."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {
        "prior": case.prior,
        "generator": case.generator,
        "implementation": "public" if case.public else "ours" if case.graphs else "ours without graphs",
        "prompts": case.prompts,
    }
    try:
        trainer = assemble(case, prior, device)
        row |= (measure_public if case.public else measure_ours)(trainer, repeats)
    except torch.OutOfMemoryError as error:
        row["error"] = f"out of memory: {first_line(error)}"
    except Exception as error:  # the other cases must still be measured
        row["error"] = f"{type(error).__name__}: {first_line(error)}"
    row["peak, GiB"] = round(torch.cuda.max_memory_allocated() / 2**30 if on_cuda else max_resident_gib(), 2)
    return row


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def compare(row: dict[str, Any], public: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the row with its ratio to the public baseline's images per second with the same generator."""
    if row["implementation"] == "public":
        public[row["generator"]] = row
    step = row.get("step, ms")
    base = public.get(row["generator"], {}).get("images/s") if "Stable" in row["prior"] else None
    row["images/s / public"] = round(row["images/s"] / base, 2) if step and base else None
    return row


def run(
    remaining: list[Case], results_file: ResultsFile, device: torch.device, repeats: int, deadline: float
) -> None:
    """Measure the cases in `remaining`, removing each, until the time `deadline`."""
    name, prior, public, last_case_s = "", None, {}, 0.0
    while remaining and (start := time.perf_counter()) + last_case_s / 2 < deadline:
        case = remaining.pop(0)
        if prior is None or name != case.prior:
            prior = None  # free it first: one at a time fits in memory
            name, prior = case.prior, prior_of(case.prior, device)
            print(f"built {name} in {now() - start:.1f} s", flush=True)
        results_file.add(compare(row_of(case, prior, device, repeats), public))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        last_case_s = time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sd_steps", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check/steps.json"))
    parser.add_argument("--limit", type=float, default=180.0, help="time limit for all cases, in seconds")
    args = parser.parse_args()
    deadline = time.perf_counter() + args.limit
    with join_world(args.device) as world:
        results_file = ResultsFile(args.output, ceilings.about(world.device))
        on_cuda = world.device.type == "cuda"
        numbers, repeats = ((1, 4, 8), 5) if on_cuda else ((1, 2), 2)
        counted = args.output.with_name("roofline.json")
        counted.unlink(missing_ok=True)
        # Counts on another core meanwhile; the tiny cases of a CPU have no floor.
        counting = roofline.start(counted, numbers) if on_cuda else None
        remaining = list(cases(numbers))
        run(remaining, results_file, world.device, repeats, deadline)
        if counting is not None:
            counting.terminate()  # probably finished long ago; its file has the counts so far
            _, errors = counting.communicate()
            if not counted.exists() and errors:
                print(f"no floors, as counting failed: {errors.decode().strip().splitlines()[-1]}")
            add_floors(results_file.rows, counted, ceilings.measure(world.device))
    ratios = [row["images/s / public"] for row in results_file.rows if row["images/s / public"]]
    speedup = f", up to {max(ratios)} times the public baseline's images per second" if ratios else ""
    failed = sum("error" in row for row in results_file.rows)
    results_file.summarize(
        f"{len(results_file.rows)} cases, {failed} failed, {len(remaining)} not reached{speedup}"
    )
    if len(results_file.rows) == failed:
        raise SystemExit("no case was measured")


if __name__ == "__main__":
    main()
