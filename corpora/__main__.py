"""Corpora of prompts: list them, take in the public ones, look at one.

python -m corpora list
python -m corpora import df415 dreamfusion_415_prompt_library.json
python -m corpora show df415
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from corpora import CORPORA, IMPORTED, PUBLISHED, open_corpus
from corpora.published import import_corpus


def list_corpora(given: argparse.Namespace) -> None:
    for name in sorted({*CORPORA, *PUBLISHED}):
        if name in CORPORA:
            print(f"{name:<16} {len(CORPORA[name]()):>9,} prompts")
        elif (given.folder / f"{name}.parquet").exists():
            print(f"{name:<16} {len(open_corpus(name, folder=given.folder)):>9,} prompts, imported")
        else:
            known = PUBLISHED[name]
            print(f"{name:<16} not imported: {known.file}, from {known.origin}")


def take_in(given: argparse.Namespace) -> None:
    _, report = import_corpus(given.name, given.path, given.folder)
    print(f"{report}\nkept as {given.folder / given.name}.parquet; now: corpus={given.name}")


def show(given: argparse.Namespace) -> None:
    corpus = open_corpus(given.name, held_out=given.held_out, folder=given.folder)
    print(f"{corpus.name}: {len(corpus):,} prompts, {len(corpus.trained):,} to train on")
    for index in range(0, len(corpus), max(1, len(corpus) // given.number)):
        prompt = corpus[index]
        print(f"  {prompt.id}  {prompt.split:<7}  {prompt.text}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m corpora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=IMPORTED, help="of imported corpora (%(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="all names")
    command.set_defaults(run=list_corpora)
    command = commands.add_parser("import", help="check a public file of prompts, and keep it")
    command.add_argument("name", help=f"one of {', '.join(PUBLISHED)}")
    command.add_argument("path", type=Path, help="the public file")
    command.set_defaults(run=take_in)
    command = commands.add_parser("show", help="some prompts of a corpus")
    command.add_argument("name", help="a name, or a file of prompts")
    command.add_argument("--held-out", type=float, help="hold out this share, by the hash of the words")
    command.add_argument("--number", type=int, default=10, help="about so many (%(default)s)")
    command.set_defaults(run=show)
    given = parser.parse_args(argv)
    try:
        given.run(given)
    except ValueError as error:
        print(f"corpora: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
