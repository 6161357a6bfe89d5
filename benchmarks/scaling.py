"""What a training process costs as its corpus grows: memory, start-up, and what a step waits for its text.

  python -m benchmarks.scaling [--prompts 1000 10000 100000 1000000] [--folder outputs/scaling]

For each size: made-up sentences of the embedded world's words are kept as Parquet and encoded (once; some
7 kB a prompt), then a training process of its own takes some steps from the shards: what generator and prior
are told of each prompt is read there, and nothing is encoded. Baselines, in the same run: the same steps with
all of their text in memory already, and encoding one text at a time. Prints tables and writes
FOLDER/scaling.json.
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
from corpora.published import save_table
from corpora.shapes.grammar import NUM_PAIRS, pair, sentence, singles
from corpora.table import Entry, tabulate

PRIOR = "checkpoints/shapes-prior"
STEPS = 30


def sentences(count: int) -> Iterator[str]:
    """As many different sentences, up to seven million: a pair of the grammar, and one thing more."""
    things = [sentence(single) for single in singles()]
    if count > NUM_PAIRS * len(things):
        raise ValueError(f"there are {NUM_PAIRS * len(things):,} such sentences, not {count:,}")
    for index in range(count):
        more = things[(index + index // NUM_PAIRS) % len(things)]
        yield f"{sentence(pair(index % NUM_PAIRS))} and {more}"


def prepared(count: int, folder: Path) -> tuple[Path, Path]:
    """A corpus of `count` prompts and its shards, created if they are missing."""
    corpus, shards = folder / f"{count}.parquet", folder / f"text-{count}"
    if not corpus.exists():
        entries = (Entry(text, "train", f"sentence {place}") for place, text in enumerate(sentences(count)))
        save_table(tabulate(entries, f"sentences-{count}"), corpus)
    if not (shards / "manifest.json").exists():
        command = ["-m", "corpora", "encode", str(corpus), "--encoder", PRIOR, "--output", str(shards)]
        subprocess.run([sys.executable, *command, "--prompts-per-shard", "2048"], check=True, cwd=ROOT)
    return corpus, shards


def configured(corpus: Path, shards: Path) -> RunConfig:
    text = (f"text.shards=[{shards}]", "trainer.prompts_per_process=4")
    # The prior gets the plain prompts, without view words: the shards have them.
    text += ("views.direction_step_deg=0", "views.suffixes=['', '', '', '']")
    preset = ROOT / "configs/quickstart.yaml"
    return load_config(RunConfig, preset, [f"corpus={corpus}", "output=outputs/scaling/run", *text])


def trainer_of(config: RunConfig) -> Trainer:
    corpus, device = load_corpus(config), torch.device("cpu")
    prior, bank, generator = build_parts(config, device)
    guidance = guidance_of(config, prior, bank, len(corpus.trained))
    world = World(device=device)
    return Trainer(config, world=world, corpus=corpus, guidance=guidance, bank=bank, generator=generator)


def process(corpus: Path, shards: Path) -> dict[str, float]:
    """In a separate process: start-up, memory, and steps with text from shards and from memory."""
    start = time.perf_counter()
    trainer = trainer_of(configured(corpus, shards))
    trainer.step(0, interrupted=False)
    found = {"start-up, s": time.perf_counter() - start}
    # Alternate the two, so that a busy machine slows both equally.
    known = trainer_of(configured(corpus, shards))
    remember(known)
    times: dict[str, list[float]] = {"shards": [], "memory": []}
    waits = []
    for step in range(1, STEPS):
        for name, each in (("shards", trainer), ("memory", known)):
            begin = time.perf_counter()
            record = each.step(step, interrupted=False)
            times[name].append(time.perf_counter() - begin)
            if name == "shards":
                waits.append(record.stopwatch.seconds()["batch"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    for each in (trainer, known):
        each.prefetcher.close()
    encoded = trainer.bank.prior_encoder.num_encoded
    assert encoded <= 2, f"{encoded} sentences were not in the shards"  # the empty and the negative one
    return found | {
        "step, ms": 1e3 * medians["shards"],
        "of text in memory": medians["shards"] / medians["memory"],
        "waits for its batch, ms": 1e3 * statistics.median(waits),
    }


def remember(trainer: Trainer) -> None:
    """Let the text of all steps be in memory, and the shards forgotten."""
    source = trainer.bank.prior_encoder
    for step in range(STEPS + 1):
        batch = trainer.sampler.draw(step, trainer.slots[0], trainer.prompts_seen(step))
        for text in {trainer.prompt(index).text for index in batch.prompt_indices}:
            source._cache[text, ""] = source.encode([(text, "")])
    source.stores.clear()


def memory(corpus: Path, shards: Path) -> dict[str, float]:
    """In a separate process: peak resident memory of a training."""
    import resource

    trainer = trainer_of(configured(corpus, shards))
    for step in range(STEPS):
        trainer.step(step, interrupted=False)
    trainer.prefetcher.close()
    return {"peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(counts: list[int], folder: Path) -> list[dict[str, object]]:
    """A row for each size."""
    rows = []
    for count in counts:
        corpus, shards = prepared(count, folder)
        row: dict[str, object] = {"prompts": f"{count:,}", "corpus, MB": f"{corpus.stat().st_size / 1e6:.1f}"}
        row["text, MB"] = f"{sum(p.stat().st_size for p in shards.rglob('*') if p.is_file()) / 1e6:,.0f}"
        for what in ("memory", "process"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.scaling",
                "--measure",
                what,
                str(corpus),
                str(shards),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            row |= {name: f"{value:.3g}" if value < 100 else f"{value:,.0f}" for name, value in found.items()}
        rows.append(row)
        print(timing.markdown(rows[-1:]), flush=True)
    return rows


def encoding(folder: Path) -> list[dict[str, object]]:
    """Prompts a second into shards, all that is done for them; and one at a time, as public code has it."""
    encoder, corpus = load_text_encoder(PRIOR), prompt_list(list(sentences(2048)), "encoding")
    speeds = {}
    for size in (1, 16, 64, 256):
        plan = plan_encoding(corpus, encoder, name=PRIOR, batch_size=size)

        def whole(plan=plan) -> None:
            shutil.rmtree(folder / "encoding", ignore_errors=True)
            start_encoding(folder / "encoding", plan)
            encode_shards(folder / "encoding", plan, corpus, encoder)
            finish_encoding(folder / "encoding", plan)

        speeds[size] = len(corpus) / timing.seconds(whole, repeats=1)
    shutil.rmtree(folder / "encoding")
    return [
        {"at once": size, "prompts a second": f"{speed:,.0f}", "gain": f"{speed / speeds[1]:.1f}"}
        for size, speed in speeds.items()
    ]


def ordering() -> list[dict[str, object]]:
    """Microseconds to compute a position of the prompt order, which stores nothing at any size."""
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
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "CORPUS", "SHARDS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        what, corpus, shards = given.measure
        found = {"memory": memory, "process": process}[what](Path(corpus), Path(shards))
        print(json.dumps(found))
        return
    machine = timing.machine(torch.device("cpu")) | {"cores": len(os.sched_getaffinity(0))}
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    found: dict[str, Any] = {"machine": machine}
    for name, rows in (("encoding", lambda: encoding(given.folder)), ("ordering", ordering)):
        found[name] = rows()
        print(f"\n{name}\n\n{timing.markdown(found[name])}\n", flush=True)
    found["training"] = measure(given.prompts, given.folder)
    print(f"\ntraining\n\n{timing.markdown(found['training'])}")
    atomic_write_text(given.folder / "scaling.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
