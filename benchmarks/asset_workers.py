"""Make the assets of some prompts one at a time and in several processes, in turn, and compare the times.

  python -m benchmarks.asset_workers outputs/shapes-comp --count 16 --pairs 3

Baseline: `amortized generate --workers 1`, which uses all cores for one asset. Times are those of whole
processes, imports and the loading of the generator included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from amortized.arguments import path, whole
from amortized.cli import parser_for, run_command
from amortized.commands.compose import load_corpus, load_run_config
from benchmarks.timing import machine, markdown, now


def seconds(run: Path, prompts: Path, workers: int) -> float:
    """The seconds of a command that makes the GLBs of all prompts in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "amortized.commands.main", "generate", str(run)]
        command += ["--prompts", str(prompts), "--format", "glb", "--workers", str(workers)]
        start = now()
        subprocess.run([*command, "--output", folder], check=True, stdout=subprocess.DEVNULL)
        return now() - start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path)
    parser.add_argument("--count", type=whole(1, 10**4), default=16, help="prompts (default: %(default)s)")
    parser.add_argument("--pairs", type=whole(1, 100), default=3, help="measurements (default: %(default)s)")
    parser.add_argument("--workers", type=whole(2, 1024), default=max(2, os.cpu_count() or 2))


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table; returns the exit status."""
    corpus = load_corpus(load_run_config(args.run / "config.yaml", []))
    texts = [corpus[i].text for i in range(min(args.count, len(corpus)))]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("\n".join(texts) + "\n", encoding="utf-8")
        for _ in range(args.pairs):
            alone, together = (seconds(args.run, prompts, workers) for workers in (1, args.workers))
            rows.append(
                {"1 worker, s": round(alone, 1), f"{args.workers} workers, s": round(together, 1)}
                | {
                    "assets a minute": round(60 * len(texts) / together, 1),
                    "ratio": round(alone / together, 2),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    print(f"\n{len(texts)} prompts; {machine(torch.device('cpu'))}\n\n{markdown(rows)}")
    print(f"median ratio: {statistics.median(row['ratio'] for row in rows)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("python -m benchmarks.asset_workers", __doc__)
    add_arguments(parser)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
