"""Train a text-to-3D generator over a corpus of prompts, or one object from one prompt.

  python train.py configs/quickstart.yaml                        a whole corpus, one process
  torchrun --nproc-per-node 8 train.py configs/quickstart.yaml   the same on eight
  python train.py configs/quickstart.yaml prompt="a red cube"    one object
  python train.py configs/tiny-ingp.yaml start=outputs/quickstart   one object, from a trained generator

Every setting can be overridden as KEY=VALUE, with dots: trainer.steps=2000 guidance.method=csd
output=outputs/mine. --dry-run lists them all; --measure also times two steps. A run writes into the folder
`output`: index.html, config.yaml, log.jsonl, events.jsonl, tensorboard/, previews/ and checkpoints/;
evaluate.py adds evaluation/. The same command again resumes it, on any number of processes.

Exit status: 0 when trained; 75 when a signal (SIGTERM, SIGUSR1, Ctrl-C) stopped it after a checkpoint, to be
started again; 1 when continuing is pointless; 2 for a mistake in the settings.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from amortized.arguments import path
from amortized.cli import check_readable, list_presets, parser_for, run_command
from amortized.files import in_project
from amortized.wording import command

STOPPED_EARLY = 75  # EX_TEMPFAIL: schedulers start such a job again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = list_presets()
    parser.add_argument("config", type=path, help="a preset, e.g. configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings over the preset's")
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "changed"),
        default="auto",
        metavar="MODE",
        help="auto: resume the run in `output` if there is one; never: refuse to; changed: resume "
        "with changed settings (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print settings, parts and costs, then exit")
    parser.add_argument(
        "--measure", action="store_true", help="a dry run that also takes two steps and forecasts the time"
    )


def run(args: argparse.Namespace) -> int:
    """Train as `args` say; returns the exit status."""
    preset = in_project(args.config)
    check_readable(preset, args.overrides)
    # Importing PyTorch takes seconds: only now, after a misspelled path was reported.
    from amortized.checkpointing import open_run
    from amortized.commands.compose import build_trainer, load_corpus, load_run_config, output_of_prompt
    from amortized.config import config_to_yaml
    from amortized.parallel import join_world
    from amortized.training import describe, exit_at_once, measure

    # 1. The config, and the corpus it names.
    config = load_run_config(preset, args.overrides)
    corpus = load_corpus(config)
    if config.prompt is not None and not any(text.startswith("output=") for text in args.overrides):
        config = replace(config, output=output_of_prompt(config, corpus[0]))
    # 2. All processes. A stuck process should report itself before a collective times out on the others.
    timeout = timedelta(seconds=1.5 * config.distributed.timeout_s)
    sharded = config.distributed.strategy != "ddp" or config.distributed.shard_prior
    with join_world(config.device, timeout=timeout, always_group=sharded) as world:
        # 3. The parts. Nothing is written before they are built: a mistake leaves no folder behind.
        trainer = build_trainer(config, corpus, world)
        if args.dry_run or args.measure:
            measured = measure(trainer) if args.measure else ""  # first: `describe` uses up the modules
            if world.is_main:
                report = describe(trainer)
                print(config_to_yaml(config) + report + measured)
            return 0
        # 4. Train.
        folder, settings = Path(config.output), config_to_yaml(config)
        with open_run(folder, settings, world, resume=args.resume, corpus=corpus) as notes:
            step = trainer.train(
                notes=notes,
                leave=lambda why: exit_at_once(f"train.py: {why}" if world.is_main else "", STOPPED_EARLY),
            )
    finished = step == config.trainer.steps
    if world.is_main:
        state = "trained" if finished else "stopped"
        action = command("evaluate", config.output) if finished else "run the same command to resume"
        print(f"{config.output}: {state} at step {step}; next: {action}")
    return 0 if finished else STOPPED_EARLY


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("train.py", __doc__)
    add_arguments(parser)
    return run_command(parser, run, argv, interrupted=STOPPED_EARLY)


if __name__ == "__main__":
    sys.exit(main())
