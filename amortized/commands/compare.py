"""Compare the evaluations of several runs, prompt by prompt, with the first one.

  amortized compare outputs/quickstart outputs/mine
  amortized compare outputs/mine/evaluation outputs/mine/evaluations/checkpoint-step-000300-1a2b3c4d

RUN is the folder of a run that `amortized evaluate` has evaluated, or that of one of its evaluations. Writes
a page with the same prompts side by side, paired differences to the first run and the training curves of all:
index.html, comparison.json, comparison.csv, pictures/, turntables/, and objects/, which open in 3D.
Repeated, it replaces the earlier comparison.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amortized.arguments import path

OUTPUT = Path("outputs", "comparisons")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", type=path, nargs="+", metavar="RUN", help="a run, or the folder of an evaluation"
    )
    parser.add_argument(
        "--output", type=path, help=f"folder to write to (default: one in {OUTPUT}, named by the runs)"
    )


def run(args: argparse.Namespace) -> int:
    """Compare as `args` say; returns the exit status."""
    # Importing PyTorch takes seconds: only now, after a mistake in the options was reported.
    from amortized.comparison import compare, read_evaluations, summary, write_comparison
    from amortized.evaluation.folder import COMPARE, replaced_folder
    from amortized.names import slug

    runs = read_evaluations(args.runs)
    folder = args.output or OUTPUT / slug(" ".join(one.label for one in runs), 60)
    comparison = compare(runs)
    with replaced_folder(folder, writer=COMPARE) as new:
        write_comparison(new, comparison)
    print(f"{summary(comparison)}\ncomparison: {folder / 'index.html'}")
    return 0
