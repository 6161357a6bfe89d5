"""Export a run's generator to a self-contained folder: weights, config and model card.

  amortized export outputs/quickstart exported/quickstart
  amortized export outputs/quickstart exported/best --checkpoint best

The folder works on a machine that never saw the run, from Python:

  from amortized.generation import TextTo3D
  model = TextTo3D.from_pretrained("exported/quickstart")
"""

from __future__ import annotations

import argparse

from amortized.arguments import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="the folder of a run")
    parser.add_argument("folder", type=path, help="the folder to write; must not exist")
    parser.add_argument(
        "--checkpoint", default="newest", help="newest, best, or a name (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from amortized.commands.trained_on import knowledge_of_run
    from amortized.generation.exporting import export

    knowledge = knowledge_of_run(args.run)
    checkpoint = export(args.run, args.folder, args.checkpoint, knowledge)
    print(f"exported {checkpoint} to {args.folder}")
    if knowledge is None:
        print("note: the corpus of the run cannot be opened, so the folder does not list its prompts")
    return 0
