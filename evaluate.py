"""Render and score the prompts of a run: CLIP similarity, recall@1, and ground truth if it is known.

  python evaluate.py outputs/quickstart                          the whole corpus
  torchrun --nproc-per-node 8 evaluate.py outputs/quickstart     the same on eight
  python evaluate.py outputs/quickstart --prompt "a red cone"    any prompt
  python evaluate.py RUN --protocol t3bench-quality --judge image-reward=FOLDER --prompts t3bench-single

Writes RUN/evaluation/: index.html, results.json, results.csv, config.yaml, index.json (which files show which
prompt), strips/, truth/ and turntables/. Other prompts, splits, limits and checkpoints get folders of their
own in RUN/evaluations/. Repeated, an evaluation replaces its earlier one, once it is complete. A --protocol
other than ring writes scores.json and scores.csv there, and resumes if it was stopped.
"""

from __future__ import annotations

import argparse
import sys

from amortized.arguments import path, path_text, text, whole
from amortized.cli import parser_for, progress_bar, run_command
from amortized.commands.protocol_options import add_protocol_arguments

DEFINING = ("corpus=", "held_out=", "prompt=")  # settings of the prompts that the run has trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path, help="the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. evaluation.views=4")
    parser.add_argument("--split", default="all", help="train, heldout, val, test (default: %(default)s)")
    parser.add_argument(
        "--checkpoint", default="newest", help="newest, best, or a name (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=whole(1, 10**9), help="evaluate at most this many prompts, evenly spaced"
    )
    parser.add_argument(
        "--prompts", type=path_text, help="evaluate the prompts of this file or corpus instead"
    )
    parser.add_argument("--prompt", type=text, help="evaluate this prompt instead")
    add_protocol_arguments(parser)
    parser.add_argument(
        "--output", type=path, help="folder to write to (default: RUN/evaluation, or one in RUN/evaluations)"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate as `args` say; returns the exit status."""
    if not (args.run / "config.yaml").exists():
        raise ValueError(
            f"{args.run} holds no run (no config.yaml): name the folder that a training wrote, its `output`"
        )
    # Importing PyTorch takes seconds: only now, after a misspelled path was reported.
    from amortized.checkpointing import check_corpus
    from amortized.commands.compose import load_corpus, load_stored_config
    from amortized.commands.evaluation import (
        Selection,
        build_gallery,
        choose_prompts,
        evaluate_share,
        report,
        results_folder,
    )
    from amortized.commands.judging import choose_scoring, score_run
    from amortized.parallel import join_world

    for override in args.overrides:
        if override.startswith(DEFINING):
            raise ValueError(
                f"{override} would change what the run trained: to evaluate other prompts, use --prompts"
            )
    scoring = choose_scoring(args.protocol, args.judge, args.show)
    # 1. The prompts to evaluate.
    config = load_stored_config(args.run, args.overrides)
    corpus = load_corpus(config)
    chosen = {"prompts": args.prompts, "prompt": args.prompt, "limit": args.limit}
    selection = Selection(split=args.split, checkpoint=args.checkpoint, **chosen)
    prompts = choose_prompts(corpus, selection, one_object=config.one_object)
    folder = selection.folder(args.run) if args.output is None else args.output
    with join_world(config.device) as world:
        world.run_on_all(lambda: check_corpus(args.run, corpus) if world.is_main else None)
        progress = progress_bar("evaluating", quiet=not world.is_main)
        if scoring is not None:
            score_run(args.run, scoring, config, selection, prompts, args.output, world, progress)
            return 0
        with results_folder(folder, world, retain=args.output is None) as new:
            # 2. Each rank renders and scores its share.
            gallery = build_gallery(config, corpus, prompts)
            truths, checkpoint = corpus.truth, args.checkpoint
            rows = evaluate_share(
                args.run, checkpoint, config, truths, prompts, gallery, new, world, progress
            )
            # 3. Rank 0 summarizes all rows, once.
            shares, text = world.gather_objects(rows), ""
            if world.is_main:
                text = report(args.run, selection, config, corpus, prompts, gallery, shares, new, world)
        if world.is_main:
            print(f"{text}\nreport: {folder / 'index.html'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("evaluate.py", __doc__)
    add_arguments(parser)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
