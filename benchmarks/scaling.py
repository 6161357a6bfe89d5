"""Measure a training process as its corpus grows: memory, start-up time, and the wait of a step for its text.

  python -m benchmarks.scaling [--prompts 1000 10000 100000 1000000] [--folder outputs/scaling]

For each size, sentences of the embedded world's words are generated, written to Parquet and encoded (once;
about 7 kB per prompt). Then a separate process trains some steps with text from the shards and encodes
nothing. Baselines in the same run: the same steps with all text in memory, and encoding one text at a time.
Prints tables and writes FOLDER/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from amortized.commands.compose import RunConfig, build_parts, guidance_of, load_corpus
from amortized.conditioning import load_text_encoder
from amortized.conditioning.encode import encode_shards, finish_encoding, plan_encoding, start_encoding
from amortized.config import load_config
from amortized.files import atomic_write_text
from amortized.parallel import World
from amortized.training import Trainer
from amortized.training.prompt_order import Shuffle
from benchmarks import timing
from benchmarks.studies import ROOT
from corpora import prompt_list
from corpora.shapes.grammar import NUM_PAIRS, pair, sentence, singles
from corpora.stored import save_table
from corpora.table import Entry, tabulate

PRIOR = "checkpoints/shapes-prior"
STEPS = 30


def sentences(count: int) -> Iterator[str]:
    """Yield `count` different sentences, each a pair of the grammar and a third object.

    Raises ValueError beyond the seven million that there are.
    """
    things = [sentence(single) for single in singles()]
    if count > NUM_PAIRS * len(things):
        raise ValueError(f"count must be at most {NUM_PAIRS * len(things):,}, got {count:,}")
    for index in range(count):
        more = things[(index + index // NUM_PAIRS) % len(things)]
        yield f"{sentence(pair(index % NUM_PAIRS))} and {more}"


def prepare_corpus(count: int, folder: Path) -> tuple[Path, Path]:
    """Return a corpus file of `count` prompts and the folder of its shards; create missing ones."""
    corpus, shards = folder / f"{count}.parquet", folder / f"text-{count}"
    if not corpus.exists():
        entries = (Entry(text, "train", f"sentence {index}") for index, text in enumerate(sentences(count)))
        save_table(tabulate(entries, f"sentences-{count}"), corpus)
    if not (shards / "manifest.json").exists():
        command = ["-m", "corpora", "encode", str(corpus), "--encoder", PRIOR, "--output", str(shards)]
        subprocess.run([sys.executable, *command, "--prompts-per-shard", "2048"], check=True, cwd=ROOT)
    return corpus, shards


def config_for(corpus: Path, shards: Path) -> RunConfig:
    """Return the quickstart's config with this corpus and text from these shards."""
    overrides = [f"corpus={corpus}", "output=outputs/scaling/run", f"text.shards=[{shards}]"]
    # The prior gets plain prompts without view words, since the shards contain those.
    overrides += [
        "trainer.prompts_per_process=4",
        "views.direction_step_deg=0",
        "views.suffixes=['', '', '', '']",
    ]
    return load_config(RunConfig, ROOT / "configs/quickstart.yaml", overrides)


def build_trainer(config: RunConfig) -> Trainer:
    corpus, device = load_corpus(config), torch.device("cpu")
    prior, bank, generator = build_parts(config, device)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    world = World(device=device)
    return Trainer(config, world=world, corpus=corpus, guidance=guidance, bank=bank, generator=generator)


def measure_steps(corpus: Path, shards: Path) -> dict[str, float]:
    """Measure start-up, and steps with text from shards and from memory, in this process."""
    start = time.perf_counter()
    trainer = build_trainer(config_for(corpus, shards))
    trainer.step(0, interrupted=False)
    startup_s = time.perf_counter() - start
    # Alternate the two, so that a busy machine slows both equally.
    cached = build_trainer(config_for(corpus, shards))
    cache_all_text(cached)
    times: dict[str, list[float]] = {"shards": [], "memory": []}
    waits = []
    for step in range(1, STEPS):
        for name, each in (("shards", trainer), ("memory", cached)):
            begin = time.perf_counter()
            record = each.step(step, interrupted=False)
            times[name].append(time.perf_counter() - begin)
            if name == "shards":
                waits.append(record.stopwatch.seconds()["batch"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    for each in (trainer, cached):
        each.prefetcher.close()
    encoded = trainer.bank.prior_encoder.num_encoded
    assert encoded <= 2, f"{encoded} sentences were not in the shards"  # the empty and the negative one
    return {
        "start-up, s": startup_s,
        "step, ms": 1e3 * medians["shards"],
        "step / step with text in memory": medians["shards"] / medians["memory"],
        "wait for the batch, ms": 1e3 * statistics.median(waits),
    }


def cache_all_text(trainer: Trainer) -> None:
    """Load the text of all steps into the cache and drop the shards."""
    source = trainer.bank.prior_encoder
    for step in range(STEPS + 1):
        batch = trainer.sampler.draw(step, trainer.slots[0], trainer.prompts_seen(step))
        for text in {trainer.prompt(index).text for index in batch.prompt_indices}:
            source._cache[text, ""] = source.encode([(text, "")])
    source.stores.clear()


def measure_memory(corpus: Path, shards: Path) -> dict[str, float]:
    """Measure the peak resident memory of training, in this process."""
    import resource

    trainer = build_trainer(config_for(corpus, shards))
    for step in range(STEPS):
        trainer.step(step, interrupted=False)
    trainer.prefetcher.close()
    return {"peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(counts: list[int], folder: Path) -> list[dict[str, object]]:
    """Return a row per corpus size, measured in separate processes."""
    rows = []
    for count in counts:
        corpus, shards = prepare_corpus(count, folder)
        row: dict[str, object] = {"prompts": f"{count:,}", "corpus, MB": f"{corpus.stat().st_size / 1e6:.1f}"}
        row["text, MB"] = f"{sum(p.stat().st_size for p in shards.rglob('*') if p.is_file()) / 1e6:,.0f}"
        for quantity in ("memory", "steps"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.scaling",
                "--measure",
                quantity,
                str(corpus),
                str(shards),
            ]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
            )
            values = json.loads(done.stdout.splitlines()[-1])
            row |= {
                name: f"{value:.3g}" if value < 100 else f"{value:,.0f}" for name, value in values.items()
            }
        rows.append(row)
        print(timing.markdown(rows[-1:]), flush=True)
    return rows


def encoding(folder: Path) -> list[dict[str, object]]:
    """Return prompts per second into finished shards, by batch size; the public code has batch size 1."""
    encoder, corpus = load_text_encoder(PRIOR), prompt_list(list(sentences(2048)), "encoding")
    speeds = {}
    for size in (1, 16, 64, 256):
        plan = plan_encoding(corpus, encoder, name=PRIOR, batch_size=size)

        def encode_all(plan=plan) -> None:
            shutil.rmtree(folder / "encoding", ignore_errors=True)
            start_encoding(folder / "encoding", plan)
            encode_shards(folder / "encoding", plan, corpus, encoder)
            finish_encoding(folder / "encoding", plan)

        speeds[size] = len(corpus) / timing.seconds(encode_all, repeats=1)
    shutil.rmtree(folder / "encoding")
    return [
        {"batch size": size, "prompts per second": f"{speed:,.0f}", "speedup": f"{speed / speeds[1]:.1f}"}
        for size, speed in speeds.items()
    ]


def ordering() -> list[dict[str, object]]:
    """Return the microseconds to compute a position of the prompt order, which stores nothing."""
    rows = []
    for count in (1_000, 1_000_000, 10_000_000, 10_000_000_000):
        order = Shuffle(count, 0)
        each = timing.seconds(lambda order=order: [order.at(position) for position in range(1000)]) / 1000
        rows.append({"prompts": f"{count:,}", "microseconds": f"{1e6 * each:.0f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", nargs="+", type=int, default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("outputs/scaling"))
    parser.add_argument(
        "--measure", nargs=3, metavar=("QUANTITY", "CORPUS", "SHARDS"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.measure:
        quantity, corpus, shards = args.measure
        values = {"memory": measure_memory, "steps": measure_steps}[quantity](Path(corpus), Path(shards))
        print(json.dumps(values))
        return
    machine = timing.machine(torch.device("cpu")) | {"cores": len(os.sched_getaffinity(0))}
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    results: dict[str, Any] = {"machine": machine}
    for name, rows in (("encoding", lambda: encoding(args.folder)), ("ordering", ordering)):
        results[name] = rows()
        print(f"\n{name}\n\n{timing.markdown(results[name])}\n", flush=True)
    results["training"] = measure(args.prompts, args.folder)
    print(f"\ntraining\n\n{timing.markdown(results['training'])}")
    atomic_write_text(args.folder / "scaling.json", json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
