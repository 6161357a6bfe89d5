"""Train text-to-3D generators without 3D data, and use them.

  amortized train configs/quickstart.yaml
  amortized evaluate outputs/quickstart
  amortized generate outputs/quickstart "a red cube on a blue cylinder"

`amortized COMMAND --help` shows the examples and options of a command.
"""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from amortized import __version__
from amortized.cli import Parser, one_sentence_errors, parse, parser_for
from amortized.files import PROJECT


@dataclass(frozen=True)
class Command:
    """A subcommand: a module with a docstring that starts with examples, and `add_arguments` and `run`."""

    name: str
    module: str
    summary: str
    prefix: tuple[str, ...] = ()  # arguments of the module that the command implies
    interrupted: int = 1  # the exit status after Ctrl-C or SIGTERM


COMMANDS = (
    Command("train", "train", "train a generator over a corpus, or one object from a prompt", interrupted=75),
    Command("submit", "amortized.commands.submit", "hand a training to a scheduler, or to the background"),
    Command("runs", "amortized.commands.runs", "list runs with their status, or write a page of them"),
    Command("evaluate", "evaluate", "render and score the prompts of a run"),
    Command("compare", "amortized.commands.compare", "compare evaluated runs, prompt by prompt"),
    Command("generate", "amortized.commands.generate", "turn prompts into pictures, videos and 3D files"),
    Command("view", "amortized.commands.view", "show the pages of a folder in a browser, objects in 3D"),
    Command("serve", "amortized.commands.serve", "serve generators over HTTP: text in, 3D out"),
    Command("export", "amortized.commands.export", "export a run's generator to a self-contained folder"),
    Command("corpora", "corpora.__main__", "list, import, convert and show corpora"),
    Command("encode", "corpora.__main__", "encode the text of a corpus into shards", ("encode",)),
    Command("doctor", "amortized.doctor.__main__", "check this machine, and a config against it"),
    Command("playground", "amortized.guidance.playground", "optimize images with a guidance method"),
    Command(
        "convert",
        "amortized.commands.convert",
        "convert published weights: ScaleDreamer, MVDream, ImageReward",
    ),
    Command("bench", "benchmarks.__main__", "run the benchmarks (from a checkout)"),
)
RENAMED = {"convert-mvdream": ("convert", "mvdream")}  # old names work for one release


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand. Imports nothing but that command's module, so that `--help` is quick."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    arguments = _current(sys.argv[1:] if argv is None else argv)
    command = next((one for one in COMMANDS if [one.name] == arguments[:1]), None)
    name = f"amortized {command.name}" if command else "amortized"
    interrupted = command.interrupted if command else 1
    with one_sentence_errors(name, arguments, interrupted=interrupted):
        if command is None:
            _overview().parse_args(arguments or ["--help"])  # exits: help, version, or an unknown command
            return 0
        module = _load(command)
        # The subcommand of a prefix adds its name.
        parser = parser_for("amortized" if command.prefix else name, module.__doc__)
        module.add_arguments(parser)
        return module.run(parse(parser, [*command.prefix, *arguments[1:]])) or 0
    return 0


def _current(arguments: list[str]) -> list[str]:
    """The arguments under a command's name in this release; a note names it if the old one was given."""
    if not arguments or arguments[0] not in RENAMED:
        return arguments
    words = RENAMED[arguments[0]]
    print(f"`amortized {arguments[0]}` is now `amortized {' '.join(words)}`", file=sys.stderr)
    return [*words, *arguments[1:]]


def _load(command: Command) -> Any:
    """Import a command's module. The benchmarks are part of a checkout, not of the installed package."""
    if command.module.startswith("benchmarks"):
        if not (PROJECT / "benchmarks").is_dir():
            raise ValueError(
                "the benchmarks are not installed: run this command in a checkout of the project"
            )
        sys.path.insert(0, str(PROJECT))
    return importlib.import_module(command.module)


def _overview(modules: dict[str, Any] | None = None) -> Parser:
    """A parser of the command names, and with `modules` of each command's arguments."""
    parser = Parser(prog="amortized", description=__doc__)
    parser.add_argument("--version", action="version", version=f"amortized3d {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(command.name, help=command.summary)
        if modules is not None and command.name in modules:
            modules[command.name].add_arguments(sub)
    return parser


def _complete() -> None:
    """Answer the shell's request for completions and exit."""
    import argcomplete

    modules: dict[str, Any] = {}
    for command in COMMANDS:
        with suppress(ValueError):
            modules[command.name] = _load(command)
    argcomplete.autocomplete(_overview(modules))


if __name__ == "__main__":
    sys.exit(main())
