"""Prompt corpora: list them, import the public ones, print one, encode its text.

  amortized corpora list
  amortized corpora import df415 dreamfusion_415_prompt_library.json
  amortized corpora convert prompts.jsonl --output prompts.parquet
  amortized corpora show df415
  amortized encode shapes100k --encoder checkpoints/shapes-prior
  torchrun --nproc-per-node 8 -m corpora encode df415 --encoder FOLDER

`encode` writes a folder of shards for text.shards=[FOLDER]. It can be killed at any time: the same command
resumes and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from amortized.arguments import path, path_text, whole
from amortized.cli import parser_for, run_command
from amortized.untrusted import short
from amortized.urls import check_local
from amortized.wording import count
from corpora import CORPORA, IMPORT_FOLDER, PUBLISHED, open_corpus, read_entries, tabulate
from corpora.published import import_corpus
from corpora.stored import load_table, save_table

ENCODE = """Encode the text of a corpus into a folder of shards, for text.shards=[FOLDER].

  amortized encode shapes100k --encoder checkpoints/shapes-prior --views
  torchrun --nproc-per-node 8 -m corpora encode df415 --encoder FOLDER

It can be killed at any time: the same command resumes and ends with the same bytes.
"""


def list_corpora(args: argparse.Namespace) -> None:
    """Print the name and size of every corpus."""
    for name in sorted({*CORPORA, *PUBLISHED}):
        if name in CORPORA:
            print(f"{name:<16} {len(CORPORA[name]()):>9,} prompts")
        elif (args.folder / f"{name}.parquet").exists():
            print(f"{name:<16} {len(open_corpus(name, folder=args.folder)):>9,} prompts, imported")
        else:
            published = PUBLISHED[name]
            print(f"{name:<16} not imported: {published.file}, from {published.origin}")


def import_published(args: argparse.Namespace) -> None:
    """Check a public file and store it as Parquet."""
    _, report = import_corpus(args.name, args.path, args.folder)
    built_in = PUBLISHED[args.name].built_in
    stored_as = "built in, nothing to store" if built_in else f"stored as {args.folder / args.name}.parquet"
    print(f"{report}\n{stored_as}; use it with: corpus={args.name}")


def convert(args: argparse.Namespace) -> None:
    """Convert a file of prompts to a Parquet table that opens without parsing."""
    check_local(args.output)
    if args.output.suffix.lower() != ".parquet":
        raise ValueError(f"--output must be a .parquet file, got {short(args.output)}")
    is_parquet = args.path.suffix.lower() == ".parquet"
    table = load_table(args.path) if is_parquet else None
    if table is None:
        table = tabulate(read_entries(args.path), str(args.path))
    save_table(table, args.output)
    print(f"{args.output}: {count(len(table), 'distinct prompt')}; use it with: corpus={args.output}")


def show(args: argparse.Namespace) -> None:
    """Print evenly spaced prompts of a corpus."""
    corpus = open_corpus(args.name, held_out=args.held_out, folder=args.folder)
    print(f"{corpus.name}: {count(len(corpus), 'prompt')}, {len(corpus.trained):,} to train on")
    for index in range(0, len(corpus), max(1, len(corpus) // max(1, args.number))):
        prompt = corpus[index]
        print(f"  {prompt.id}  {prompt.split:<7}  {prompt.text}")


def encode(args: argparse.Namespace) -> None:
    """Encode the text of a corpus into shards, on all processes of a torchrun launch."""
    from amortized.cli import progress_bar
    from amortized.conditioning import ViewTextConfig, load_text_encoder
    from amortized.conditioning.encode import (
        encode_shards,
        finish_encoding,
        locked_folder,
        plan_encoding,
        start_encoding,
    )
    from amortized.parallel import join_world

    corpus = open_corpus(args.name, folder=args.folder)
    suffixes = args.suffixes if args.suffixes is not None else ViewTextConfig().suffixes
    folder = args.output or Path("outputs/text") / f"{Path(args.name).stem}-{Path(args.encoder).name}"
    check_local(folder)
    with join_world(args.device, timeout=timedelta(days=1)) as world, ExitStack() as lock:
        encoder = load_text_encoder(
            args.encoder, revision=args.revision, device=world.device, allow_network=args.allow_network
        )
        encoding = plan_encoding(
            corpus,
            encoder,
            name=args.encoder,
            revision=args.revision,
            pooled_only=args.pooled,
            suffixes=suffixes if args.views or args.suffixes is not None else (),
            dtype=args.dtype,
            prompts_per_shard=args.prompts_per_shard,
            batch_size=args.batch_size,
        )

        def start() -> None:
            if world.is_main:
                lock.enter_context(locked_folder(folder))
                start_encoding(folder, encoding)
                size = encoding.num_prompts * encoding.bytes_per_prompt
                shards = count(encoding.num_shards, "shard")
                prompts, sentences = encoding.num_prompts, len(encoding.suffixes)
                text = f"{count(prompts, 'prompt')}, {count(sentences, 'sentence')} each"
                print(f"{text}: about {_format_bytes(size)} in {shards} under {folder}")

        def work() -> None:
            try:
                encode_shards(
                    folder,
                    encoding,
                    corpus,
                    encoder,
                    rank=world.rank,
                    world_size=world.size,
                    verify=args.verify,
                    progress=progress_bar("encoding", quiet=not world.is_main),
                )
            except OSError as error:
                raise ValueError(
                    f"{error}; finished shards are safe: run the same command again to resume"
                ) from error

        def finish() -> None:
            if world.is_main:
                manifest = finish_encoding(folder, encoding)
                if manifest.overlong:
                    print(f"{count(manifest.overlong, 'sentence')} cut: see {folder}/overlong.txt")
                size = _format_bytes(manifest.num_bytes)
                print(f"{folder}: {size}; use it with: text.shards=[{folder}]")

        # Each stage must end on every process before the next begins; an error in one stops all.
        for stage in (start, work, finish):
            world.run_on_all(stage)


def _format_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to a parser; pass the parsed arguments to `run`."""
    parser.add_argument(
        "--folder", type=path, default=IMPORT_FOLDER, help="of imported corpora (%(default)s)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="list all corpora")
    command.set_defaults(corpora_command=list_corpora)

    command = commands.add_parser("import", help="check a public file of prompts and store it")
    command.add_argument("name", help=f"one of {', '.join(PUBLISHED)}")
    command.add_argument("path", type=path, help="the public file")
    command.set_defaults(corpora_command=import_published)

    command = commands.add_parser(
        "convert", aliases=["keep"], help="convert your own prompts to Parquet, which opens without parsing"
    )
    command.add_argument("path", type=path, help="a file of prompts")
    command.add_argument("--output", type=path, required=True, help="the .parquet file")
    command.set_defaults(corpora_command=convert)

    command = commands.add_parser("show", help="print some prompts of a corpus")
    command.add_argument("name", type=path_text, help="a name, or a file of prompts")
    command.add_argument("--held-out", type=float, help="hold out this fraction, by a hash of the words")
    command.add_argument(
        "--number", type=whole(1, 10**9), default=10, help="about this many prompts (%(default)s)"
    )
    command.set_defaults(corpora_command=show)

    command = commands.add_parser(
        "encode",
        help="encode the text of a corpus into shards",
        description=ENCODE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", type=path_text, help="a name, or a file of prompts")
    command.add_argument(
        "--encoder", type=path_text, required=True, help="a diffusers folder, a CLIP or T5, or a Hub id"
    )
    command.add_argument("--revision", help="of a Hub id")
    command.add_argument("--allow-network", action="store_true", help="download a Hub id that is not cached")
    command.add_argument("--output", type=path, help="the folder (default: outputs/text/CORPUS-ENCODER)")
    command.add_argument("--views", action="store_true", help="also store each prompt with each view's words")
    command.add_argument("--suffixes", nargs="+", help="use these words instead of the default views'")
    command.add_argument("--pooled", action="store_true", help="store pooled vectors only, no tokens")
    command.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32 (%(default)s)")
    command.add_argument("--prompts-per-shard", type=whole(1, 10**6), default=512, help="(%(default)s)")
    command.add_argument(
        "--batch-size", type=whole(1, 10**6), default=64, help="sentences at once (%(default)s)"
    )
    command.add_argument("--device", default="auto", help="(%(default)s)")
    command.add_argument("--verify", action="store_true", help="check existing shards and redo damaged ones")
    command.set_defaults(corpora_command=encode)


def run(args: argparse.Namespace) -> int:
    """Run the parsed subcommand and return the exit status."""
    args.corpora_command(args)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("python -m corpora", __doc__)
    add_arguments(parser)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
