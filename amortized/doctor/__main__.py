"""Check this machine for training: what it has, what is missing, and the command that fixes it.

  amortized doctor                           the machine, and the embedded models
  amortized doctor configs/quickstart.yaml   and what this preset needs: models, devices, packages

`missing` and `wrong` are required, `-` is optional. Other settings are not checked.
Exit status: 0 if everything required is there, 1 if not, 2 if the settings cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from amortized.cli import parser_for, run_command
from amortized.doctor.machine import Row, device_rows, import_torch, storage_rows
from amortized.doctor.models import model_rows, resources_of, shard_rows, teachers_of
from amortized.doctor.needs import needs_of
from amortized.doctor.packages import install_project, optional_rows, version_rows


def as_text(rows: Sequence[Row]) -> str:
    """Format the rows as aligned text, by group, each fix below its row."""
    width, lines = max(len(row.name) for row in rows), []
    for group, members in groupby(rows, lambda row: row.group):
        lines.append(group)
        for row in members:
            lines.append(f"  {row.state:<9}{row.name:<{width}}  {row.detail}")
            lines += [f"{'':<{width + 13}}{row.fix}"] if row.fix else []
        lines.append("")
    num_failed = sum(row.fails for row in rows)
    lines.append(
        f"Required but missing or wrong: {num_failed}." if num_failed else "Everything required is there."
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="[CONFIG] [KEY=VALUE ...]", help="a preset, and settings")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("python -m amortized.doctor", __doc__)
    add_arguments(parser)
    return run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    """Run all checks, print the report and return the exit status."""
    torch, torch_error = import_torch()
    rows = list(version_rows(torch, torch_error))
    try:
        needs, resources = needs_of(args.words), resources_of(args.words)
        rows += device_rows(torch, needs)
        rows += optional_rows(torch, needs)
        rows += storage_rows(resources.output)
        rows += model_rows(resources, teachers_of(args.words))
        rows += shard_rows(resources.shards)
    except ImportError as error:  # a package that reads settings or weights
        checked = {row.group for row in rows}
        rows += [] if "devices" in checked else [*device_rows(torch), *optional_rows(torch)]
        rows.append(Row("models", "all", "wrong", f"cannot be checked: {error}", install_project()))
    except ValueError as error:
        print(f"amortized.doctor: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    ok = not any(row.fails for row in rows)
    report = json.dumps({"ok": ok, "rows": [asdict(row) for row in rows]}, indent=2)
    print(report if args.json else as_text(rows))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
