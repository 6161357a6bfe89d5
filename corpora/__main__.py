"""Corpora of prompts: list them, take in the public ones, look at one, encode its text.

  python -m corpora list
  python -m corpora import df415 dreamfusion_415_prompt_library.json
  python -m corpora keep prompts.jsonl --output prompts.parquet
  python -m corpora show df415
  python -m corpora encode shapes100k --encoder checkpoints/shapes-prior
  torchrun --nproc-per-node 8 -m corpora encode df415 --encoder FOLDER

`encode` writes a folder of shards that a run reads as text.shards=[FOLDER]. Killed at any moment, the same
command goes on, and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from amortized.cli import one_sentence_errors
from corpora import CORPORA, IMPORTED, PUBLISHED, entries_of, open_corpus, tabulate
from corpora.published import import_corpus, load_table, save_table


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
    kept = (
        "it is built in" if PUBLISHED[given.name].built_in else f"kept as {given.folder / given.name}.parquet"
    )
    print(f"{report}\n{kept}; now: corpus={given.name}")


def keep(given: argparse.Namespace) -> None:
    if given.output.suffix != ".parquet":
        raise ValueError(f"--output must be a .parquet file, got {given.output}")
    known = load_table(given.path) if given.path.suffix == ".parquet" and given.path.exists() else None
    table = tabulate(entries_of(given.path), str(given.path)) if known is None else known
    save_table(table, given.output)
    print(f"{given.output}: {len(table):,} different prompts; now: corpus={given.output}")


def show(given: argparse.Namespace) -> None:
    corpus = open_corpus(given.name, held_out=given.held_out, folder=given.folder)
    print(f"{corpus.name}: {len(corpus):,} prompts, {len(corpus.trained):,} to train on")
    for index in range(0, len(corpus), max(1, len(corpus) // max(1, given.number))):
        prompt = corpus[index]
        print(f"  {prompt.id}  {prompt.split:<7}  {prompt.text}")


def readable(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def encode(given: argparse.Namespace) -> None:
    from amortized.cli import progress_bar
    from amortized.conditioning import ViewTextConfig, load_text_encoder
    from amortized.conditioning.encode import encode_shards, finish_encoding, plan_encoding, start_encoding
    from amortized.training import join_world

    corpus = open_corpus(given.name, folder=given.folder)
    suffixes = given.suffixes if given.suffixes is not None else ViewTextConfig().suffixes
    with join_world(given.device, patience=timedelta(days=1)) as world:
        encoder = load_text_encoder(
            given.encoder, revision=given.revision, device=world.device, allow_network=given.allow_network
        )
        encoding = plan_encoding(
            corpus, encoder, name=given.encoder, revision=given.revision, pooled_only=given.pooled,
            suffixes=suffixes if given.views or given.suffixes is not None else (),
            dtype=given.dtype, prompts_per_shard=given.prompts_per_shard, batch_size=given.batch_size,
        )  # fmt: skip
        folder = given.output or Path("outputs/text") / f"{Path(given.name).stem}-{Path(given.encoder).name}"

        def start() -> None:
            if world.is_main:
                start_encoding(folder, encoding)
                size = encoding.num_prompts * encoding.bytes_per_prompt
                told = f"{encoding.num_prompts:,} prompts, {len(encoding.suffixes)} sentences each"
                print(f"{told}: about {readable(size)} in {encoding.num_shards:,} shards under {folder}")

        def work() -> None:
            try:
                encode_shards(
                    folder, encoding, corpus, encoder, rank=world.rank, world_size=world.size,
                    verify=given.verify,
                    progress=progress_bar("encoding", quiet=not world.is_main),
                )  # fmt: skip
            except OSError as error:
                raise ValueError(f"{error}; what is finished is kept: run the same command again") from error

        def finish() -> None:
            if world.is_main:
                manifest = finish_encoding(folder, encoding)
                if manifest.overlong:
                    print(f"{manifest.overlong:,} sentences were cut: see {folder}/overlong.txt")
                print(f"{folder}: {readable(manifest.num_bytes)}; now: text.shards=[{folder}]")

        for part in (start, work, finish):
            world.together(part)


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
    command = commands.add_parser("keep", help="turn a list of your own into Parquet, which opens at once")
    command.add_argument("path", type=Path, help="a file of prompts")
    command.add_argument("--output", type=Path, required=True, help="the .parquet file")
    command.set_defaults(run=keep)
    command = commands.add_parser("show", help="some prompts of a corpus")
    command.add_argument("name", help="a name, or a file of prompts")
    command.add_argument("--held-out", type=float, help="hold out this share, by the hash of the words")
    command.add_argument("--number", type=int, default=10, help="about so many (%(default)s)")
    command.set_defaults(run=show)
    command = commands.add_parser("encode", help="encode its text into shards")
    command.add_argument("name", help="a name, or a file of prompts")
    command.add_argument("--encoder", required=True, help="a diffusers folder, a CLIP or T5, or a Hub id")
    command.add_argument("--revision", help="of a Hub id")
    command.add_argument("--allow-network", action="store_true", help="fetch a Hub id that is not here")
    command.add_argument("--output", type=Path, help="the folder (default: outputs/text/CORPUS-ENCODER)")
    command.add_argument("--views", action="store_true", help="store each prompt with each view's words, too")
    command.add_argument("--suffixes", nargs="+", help="these words, in place of the default views'")
    command.add_argument("--pooled", action="store_true", help="only the vector of each sentence, no tokens")
    command.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32 (%(default)s)")
    command.add_argument("--prompts-per-shard", type=int, default=512, help="(%(default)s)")
    command.add_argument("--batch-size", type=int, default=64, help="sentences at once (%(default)s)")
    command.add_argument("--device", default="auto", help="(%(default)s)")
    command.add_argument("--verify", action="store_true", help="read what is there, and mend what is damaged")
    command.set_defaults(run=encode)
    given = parser.parse_args(argv)
    with one_sentence_errors("corpora"):
        try:
            given.run(given)
        except OSError as error:
            raise ValueError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
