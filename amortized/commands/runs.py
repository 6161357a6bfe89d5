"""List the runs under a folder, however they were started: status, step, time left, loss, configuration.

  amortized runs
  amortized runs outputs/published --json
  amortized runs --page runs.html --watch 30

Everything comes from the folders of the runs; schedulers are questioned only about the jobs that
`amortized submit` left in a queue. Status: running; waiting (its job is queued); done; stopped (by a signal,
after a checkpoint); collapsed (it would stop again with the same settings); failed; lost (its process is gone
and left no reason); unknown (its folder cannot be read). --page writes one HTML file with the curves,
previews and events of all runs, and the settings in which they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path

from amortized.arguments import number, path

OUTPUTS = Path("outputs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=path, nargs="?", default=OUTPUTS, help=f"a folder with runs (default: {OUTPUTS})"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument("--page", type=path, metavar="FILE.html", help="write a page of all runs as well")
    parser.add_argument(
        "--watch",
        type=number(0.5, 86400),
        metavar="SECONDS",
        help="repeat until Ctrl-C, every so many seconds",
    )


def run(args: argparse.Namespace) -> int:
    """List runs as `args` say; returns the exit status."""
    if args.watch is None:
        _show(args)
        return 0
    with suppress(KeyboardInterrupt):  # how it ends
        while True:
            _show(args)
            time.sleep(args.watch)
    return 0


def _show(args: argparse.Namespace) -> None:
    from amortized.runs import read_runs, table, write_page

    runs = read_runs(args.folder)
    if args.page is not None:
        write_page(args.page, runs, None if args.watch is None else max(1, round(args.watch)))
    if args.json:
        print(json.dumps([run.to_json() for run in runs], indent=None if args.watch else 2), flush=True)
        return
    if args.watch is not None and sys.stdout.isatty():
        print("\033[H\033[2J", end="")  # clears the terminal
    print(table(runs), flush=True)
    if args.page is not None:
        print(f"page: {args.page}", flush=True)
