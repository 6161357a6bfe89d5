"""One-GPU training steps at the size of Stable Diffusion 2.1 and of MVDream, beside the public way.

    python -m benchmarks.sd_steps [--device cuda] [--output FILE.json] [--limit SECONDS]

Weights are random and made on the device; generators have their published sizes. On a CPU both are tiny.
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
from benchmarks.public_way import PER_PIXEL, PublicWay
from benchmarks.steps import Pieces, split_of
from benchmarks.timing import Findings, now, waits
from corpora import prompt_list

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {"Stable Diffusion 2.1": "hyper-ingp-sd21", "MVDream": "hyper-ingp-mvdream"}
# What a CPU is given in place of the published sizes.
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
PUBLIC_RADIUS = 2.0  # of the field's box in the public code, to whose ends its rays go
THINGS = ("a red cube", "an astronaut riding a horse", "a bowl of fruit", "a castle", "a small boat")
COLORS = ("made of wood", "made of glass", "painted blue")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of training, at one size."""

    prior: str
    generator: str
    prompts: int
    public: bool = False
    graphs: bool = True  # denoiser and encoder are replayed as CUDA graphs

    def config(self, device: torch.device) -> RunConfig:
        """The preset, with this generator; a CPU gets a tiny one."""
        own = [f"generator.name={self.generator}", f"trainer.prompts_per_process={self.prompts}"]
        own += [f"generator.bounding_radius={PUBLIC_RADIUS}"] if self.public else []
        own += [] if device.type == "cuda" else [*TINY[self.generator], *TINY_RUN]
        given = [*own, "corpus=in memory", "output=outputs/gpu-check/no-run", f"device={device}"]
        return load_config(RunConfig, ROOT / "configs" / f"{PRESETS[self.prior]}.yaml", given)


def cases(numbers: tuple[int, ...]) -> Iterator[Case]:
    """What matters most first: time may run out."""
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
    """The model of that name in half precision, tiny on a CPU."""
    multi_view, on_cuda = name == "MVDream", device.type == "cuda"
    published = sizes.MVDREAM if multi_view else sizes.SD21
    tiny = sizes.TINY_MVDREAM if multi_view else sizes.TINY_SD
    return sizes.random_prior(published if on_cuda else tiny, device=device, dtype=torch.float16)


def assemble(case: Case, prior: StableDiffusionPrior, device: torch.device) -> Trainer:
    """A trainer of the case, as `train.py` composes it, around a prior in memory."""
    config = case.config(device)
    prior.graphs = case.graphs and device.type == "cuda"
    texts = [f"{thing} {colour}" for thing in THINGS for colour in COLORS]
    corpus = prompt_list(texts, "in memory")
    bank = TextBank(prior.text_encoder, config.views, device=device)
    # As in a run's later steps: no sentence is met for the first time.
    bank.generator_text(texts)
    bank.prior_text(texts, orbit(len(texts), 4, elevation_deg=0.0, distance=1.0, fovy_deg=40.0))
    torch.manual_seed(config.seed)
    generator = config.generator.build(text_dim=prior.text_encoder.width).to(device)
    return Trainer(
        config,
        world=World(device=device),
        corpus=corpus,
        guidance=Guidance(prior, config.guidance),
        bank=bank,
        generator=generator,
    )


def measure_ours(trainer: Trainer, repeats: int) -> dict[str, Any]:
    """A step whole, as the trainer does it, and by part."""
    device, number = trainer.world.device, iter(range(10**6))

    def step() -> Any:
        return trainer.step(next(number))

    for _ in range(2):
        step()
    start = now()
    records = [step() for _ in range(repeats)]
    whole = (now() - start) / repeats
    found = dict(zip(records[-1].names, records[-1].values.tolist(), strict=True))
    waited = waits_of(step, device)
    pieces = Pieces(trainer=trainer)
    split = split_of(pieces.step, device, repeats)
    with torch.no_grad():
        evaluations = pieces.look(pieces.generate()).num_evaluations
    images = len(pieces.told.positive.pooled)
    return described(whole, split, images, repeats) | {
        "evaluations an image": round(evaluations / images),
        **waited,
        "finite": found["loss"] == found["loss"],
    }


def measure_public(trainer: Trainer, repeats: int) -> dict[str, Any]:
    """A step of the public way with the same generator, prior and texts."""
    device, pieces = trainer.world.device, Pieces(trainer=trainer)
    way = PublicWay(
        generator=trainer.state.generator,
        prior=trainer.guidance.prior,  # type: ignore[arg-type]
        size=trainer.config.trainer.render_size,
    )
    step = partial(way.step, pieces.read, pieces.told, pieces.cameras, pieces.z)
    step()
    start = now()
    losses = [step() for _ in range(repeats)]
    whole = (now() - start) / repeats
    return described(whole, split_of(step, device, repeats), 1, repeats) | {
        "evaluations an image": PER_PIXEL * way.size**2,
        **waits_of(step, device),
        "finite": bool(torch.stack(losses).isfinite().all()),
    }


def waits_of(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The number of times, and the places, at which the host waits for the GPU in a step."""
    places = waits(step) if device.type == "cuda" else None
    return {"host waits a step": None if places is None else len(places), "host waits at": places or []}


def described(whole: float, split: dict[str, float], images: int, repeats: int) -> dict[str, Any]:
    """Seconds as columns of a table."""
    return {
        "images": images,
        "steps timed": repeats,
        "step, ms": round(1000 * whole, 2),
        **{f"{name}, ms": round(1000 * value, 2) for name, value in split.items()},
        "images/s": round(images / whole, 2),
    }


def add_floors(rows: list[dict[str, Any]], counted: Path, ceiling: dict[str, float]) -> None:
    """What a step must take, and the ratio to that, of the cases that `benchmarks.roofline` has counted."""
    tflops = ceiling.get("float16, TFLOP/s", ceiling["float32, TFLOP/s"])
    names = dict(zip(PRESETS, roofline.PRESETS, strict=True))
    found = json.loads(counted.read_text()) if counted.exists() else []
    parts = {(one["prior"], one["generator"], one["prompts"]): one["parts"] for one in found}
    for row in rows:
        costs = parts.get((names[row["prior"]], row["generator"], row["prompts"]))
        if row["way"] == "public" or costs is None:
            continue
        floors = roofline.floor_seconds(costs, tflops=tflops, tbps=ceiling["copy, TB/s"])
        floor = 1000 * sum(floors.values())
        row["floor, ms"] = round(floor, 2)
        row["floor by part, ms"] = {name: round(1000 * seconds, 3) for name, seconds in floors.items()}
        row["step / floor"] = round(row["step, ms"] / floor, 2) if "step, ms" in row else None


def row_of(case: Case, prior: StableDiffusionPrior, device: torch.device, repeats: int) -> dict[str, Any]:
    """The measurements of a case, or that it ran out of memory."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {
        "prior": case.prior,
        "generator": case.generator,
        "way": "public" if case.public else "ours" if case.graphs else "ours without graphs",
        "prompts": case.prompts,
    }
    try:
        trainer = assemble(case, prior, device)
        row |= (measure_public if case.public else measure_ours)(trainer, repeats)
    except torch.OutOfMemoryError as error:
        row["stopped by"] = f"out of memory: {first_line(error)}"
    except Exception as error:  # measure the other cases nevertheless
        row["stopped by"] = f"{type(error).__name__}: {first_line(error)}"
    row["peak, GiB"] = round(torch.cuda.max_memory_allocated() / 2**30 if on_cuda else max_resident_gib(), 2)
    return row


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def compare(row: dict[str, Any], public: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row with its ratio to the public way's images a second by that generator."""
    if row["way"] == "public":
        public[row["generator"]] = row
    step = row.get("step, ms")
    base = public.get(row["generator"], {}).get("images/s") if "Stable" in row["prior"] else None
    row["images/s / public"] = round(row["images/s"] / base, 2) if step and base else None
    return row


def run(left: list[Case], findings: Findings, device: torch.device, repeats: int, ends: float) -> None:
    """Measure the cases that are left, one by one, until the time is over."""
    name, prior, public, last = "", None, {}, 0.0
    while left and (begun := time.perf_counter()) + last / 2 < ends:
        case = left.pop(0)
        if prior is None or name != case.prior:
            prior = None  # one at a time in memory
            name, prior = case.prior, prior_of(case.prior, device)
            print(f"{name} was made in {now() - begun:.1f} s", flush=True)
        findings.add(compare(row_of(case, prior, device, repeats), public))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        last = time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sd_steps", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check/steps.json"))
    parser.add_argument("--limit", type=float, default=180.0, help="time limit for all cases, in seconds")
    given = parser.parse_args()
    ends = time.perf_counter() + given.limit
    with join_world(given.device) as world:
        findings = Findings(given.output, ceilings.about(world.device))
        on_cuda = world.device.type == "cuda"
        numbers, repeats = ((1, 4, 8), 5) if on_cuda else ((1, 2), 2)
        counted = given.output.with_name("roofline.json")
        counted.unlink(missing_ok=True)
        # Counted meanwhile, by one of the cores; the tiny cases of a CPU have no floor.
        counting = roofline.start(counted, numbers) if on_cuda else None
        left = list(cases(numbers))
        run(left, findings, world.device, repeats, ends)
        if counting is not None:
            counting.terminate()  # most likely done long ago; what it has counted is in its file
            _, errors = counting.communicate()
            if not counted.exists() and errors:
                print(f"no floors, as nothing was counted: {errors.decode().strip().splitlines()[-1]}")
            add_floors(findings.rows, counted, ceilings.measure(world.device))
    ratios = [row["images/s / public"] for row in findings.rows if row["images/s / public"]]
    found = f", up to {max(ratios)} times the public way's images a second" if ratios else ""
    failed = sum("stopped by" in row for row in findings.rows)
    findings.sum_up(f"{len(findings.rows)} cases, {failed} stopped, {len(left)} not reached{found}")
    if len(findings.rows) == failed:
        raise SystemExit("no case was measured")


if __name__ == "__main__":
    main()
