"""Train as a job of a scheduler, or in the background of this machine.

  amortized submit configs/quickstart.yaml output=outputs/mine --to local --follow
  amortized submit configs/quickstart.yaml output=outputs/mine --to slurm --option=--nodes=4
  amortized submit configs/quickstart.yaml prompt="a red cube" --to ray --dry-run

The settings are those of `amortized train`, whose dry run checks them. A template of configs/launch is filled
with them, written into the run's folder, and handed to the scheduler's own command: sbatch, kubectl apply,
sky jobs launch or ray job submit. --to local starts a process that outlives the terminal. The same command
again resumes a run that has ended. `amortized runs` shows the job's state. With kubernetes and skypilot,
paths are those of the job; if `output` is absolute, launch file and record are in outputs/NAME here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amortized.arguments import path, text, whole
from amortized.cli import check_readable, list_presets
from amortized.files import PROJECT, in_project
from amortized.wording import command

TARGETS = ("local", "slurm", "kubernetes", "skypilot", "ray")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = list_presets()
    parser.add_argument("config", type=path, help="a preset, e.g. configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings over the preset's")
    parser.add_argument("--to", required=True, choices=TARGETS, help="the scheduler, or local")
    parser.add_argument("--follow", action="store_true", help="show status and log until the job ends")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the launch file and the command, then exit"
    )
    parser.add_argument(
        "--check",
        choices=("dry-run", "settings"),
        default="dry-run",
        help="dry-run: also build all parts here; settings: only read the settings, if corpus or prior are "
        "elsewhere (default: %(default)s)",
    )
    parser.add_argument(
        "--template",
        type=path,
        metavar="FILE",
        help="instead of the one in configs/launch: an edited copy of it",
    )
    parser.add_argument(
        "--option",
        type=text,
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="an argument for the scheduler's command; repeat it for more (--option=--nodes=1)",
    )
    parser.add_argument(
        "--processes",
        type=whole(1, 1024),
        metavar="N",
        help="of local and ray (default: one for each GPU, or one)",
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "changed"),
        default="auto",
        metavar="MODE",
        help="as of `amortized train` (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Submit as `args` say; returns the exit status."""
    preset = in_project(args.config)
    check_readable(preset, args.overrides)
    # Importing PyTorch takes seconds: only now, after a misspelled path was reported.
    from amortized.commands.following import follow
    from amortized.submission import SCHEDULERS, check_ready, launch, make_plan

    config, output = _checked_settings(preset, args.overrides)
    scheduler = SCHEDULERS[args.to]
    given = [one for one in args.overrides if one.startswith("output=")]
    arguments = [str(args.config), *args.overrides]
    arguments += [] if given[-1:] == [f"output={output}"] else [f"output={output}"]
    resume = [] if args.resume == "auto" else ["--resume", args.resume]
    if args.to == "local" and args.option:
        raise ValueError("--option is for the command of a scheduler: --to local has none")
    folder = Path(output)
    if not scheduler.shares_files and folder.is_absolute():
        folder = Path("outputs") / folder.name
    plan = make_plan(
        args.to,
        [*arguments, *resume],
        folder,
        Path.cwd(),
        template=args.template,
        processes=_processes(args, config),
        options=args.option,
    )
    if not args.dry_run:
        check_ready(plan)  # first: the dry run takes longer
    if args.check == "dry-run":
        _dry_run(arguments, shared=scheduler.shares_files)
    if args.dry_run:
        print(f"{plan.launch}\nwould be written to {plan.file} and started in {plan.root} with\n")
        print(shlex.join(plan.command))
        return 0
    submission = launch(plan)
    cancel = shlex.join(scheduler.cancel(submission.job))
    print(
        f"{folder}: job {submission.job} of {args.to}; status: {command('runs', folder)}; cancel: {cancel}",
        flush=True,
    )
    return follow(plan.run, submission) if args.follow else 0


def _checked_settings(preset: str, overrides: Sequence[str]) -> tuple[Any, str]:
    """The config, and the run's folder as `amortized train` chooses it. Raises ConfigError."""
    from amortized.commands.compose import load_run_config, output_of_prompt
    from corpora import prompt_list

    config = load_run_config(preset, overrides)
    if config.prompt is None or any(one.startswith("output=") for one in overrides):
        return config, config.output
    return config, output_of_prompt(config, prompt_list([config.prompt], "prompt")[0])


def _processes(args: argparse.Namespace, config: Any) -> int | None:
    """Processes of a machine; None: one for each GPU, as the template chooses."""
    if args.processes is not None:
        if args.to not in ("local", "ray"):
            raise ValueError(
                f"--processes is for local and ray: {args.to} takes the number from its template"
            )
        return args.processes
    if args.to != "local" or "PROCESSES" in os.environ:
        return None
    import torch

    return None if config.device != "cpu" and torch.cuda.device_count() else 1


def _dry_run(settings: Sequence[str], *, shared: bool) -> None:
    """Raise ValueError with the sentence of train.py's dry run if that fails.

    It runs in another process, so that its memory is free afterwards.
    """
    done = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *settings, "--dry-run"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        sentence = last.removeprefix("train.py: error: ")
        remedy = "" if shared else "; if these files are only where the job runs, add --check settings"
        raise ValueError(f"the dry run failed: {sentence}{remedy}")
