"""Run commands on damaged input and print a table: cases, statuses, tracebacks, hangs, peak memory.

python -m tests.fuzz --cases 400 --kinds prior clip
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.cases import KINDS, STATUSES, make_originals, run_cases


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=40, help="of each kind (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        originals = make_originals(Path(folder) / "originals")
        lines = []
        for kind in args.kinds:
            seeds = range(args.first, args.first + args.cases)
            outcomes, growth = run_cases(kind, seeds, originals, Path(folder) / "work")
            statuses = Counter(outcome.status for outcome in outcomes)
            failures = Counter(outcome.failure.partition(":")[0] for outcome in outcomes if outcome.failure)
            for outcome in outcomes:
                if outcome.failure:
                    print(f"\n{kind} {outcome.seed}: {outcome.damage}\n{outcome.failure}")
                    print(outcome.stderr[-400:])
            counts = ", ".join(f"{status}: {statuses[status]}" for status in STATUSES if statuses[status])
            slowest = max(outcome.seconds for outcome in outcomes)
            wrong = dict(failures) or "none"
            lines.append(
                f"| {kind} | {len(outcomes)} | {counts} | {wrong} | {slowest:.1f} s | {growth:.0f} MiB |"
            )
            print(lines[-1], flush=True)
    print("\n| kind | cases | statuses | failures | slowest | peak memory |\n|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
