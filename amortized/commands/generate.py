"""Turn prompts into pictures and videos with a trained generator.

  amortized generate outputs/quickstart "a red cube" "a blue sphere"
  amortized generate exported/quickstart --prompts prompts.txt --output pictures --seeds 4
  amortized generate outputs/quickstart "a red cube" --camera orbit --show rgb,normal,depth,opacity
  amortized generate outputs/quickstart --interpolate "a red cube" "a blue sphere" --method slerp --loop

Writes one strip of views (PNG) and one video (MP4) per prompt and seed, named by the prompt, and index.json
with the prompts, the model and the settings. Later calls add to the same folder: what is complete is skipped,
what was made by another model or with other settings is made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized import arguments
from amortized.arguments import names, path, path_text, whole
from amortized.commands.picture_options import (
    FORMATS,
    add_picture_arguments,
    check_memory,
    checked_formats,
    look_of,
    num_views,
    settings_of,
)

if TYPE_CHECKING:
    from amortized.generation import TextTo3D
    from amortized.generation.pictures import Look, Pictures

PROMPTS_CHECKED = 4096  # at the start: those that will be cut, and their unknown words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=path_text, help="a run's folder, an exported folder, or a Hub id in the local cache"
    )
    parser.add_argument("texts", type=arguments.text, nargs="*", metavar="PROMPT", help="any text")
    parser.add_argument("--prompts", type=path_text, help="a corpus or a file of prompts, as in corpus=")
    parser.add_argument(
        "--output", type=path, default=Path("generated"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--format", type=names(FORMATS), help="what to write: png, mp4, webp (default: png,mp4)"
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**31), default=0, help="the first variant (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=whole(1, 10**6), default=1, help="variants per prompt (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", default="newest", help="of a run: newest, best, or a name")
    parser.add_argument(
        "--text-encoder", type=path_text, help="of an exported folder: the folder of its text encoder"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: %(default)s)")
    add_picture_arguments(parser)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The files of one prompt, or of the way between two."""

    name: str  # of the files, without suffix
    prompts: tuple[str, ...]
    seed: int
    about: dict[str, Any]  # for the index


def run(args: argparse.Namespace) -> int:
    """Generate as `args` say; returns the exit status."""
    formats = checked_formats(args)
    is_run = (Path(args.model) / "config.yaml").exists()
    _check_source(args, is_run)
    from amortized.cli import progress_bar
    from amortized.commands.generated import open_index, read_index
    from amortized.evaluation.folder import writing
    from amortized.generation import TextTo3D
    from amortized.generation.pictures import save_pictures
    from amortized.wording import count

    # 1. The prompts, the model.
    texts = _texts(args)
    if args.interpolate and len(texts) != 2:
        raise ValueError(f"--interpolate needs exactly two different prompts, got {len(texts)}")
    read_index(args.output)  # refuse a folder of others before loading the model
    if is_run:
        model = TextTo3D.from_run(args.model, checkpoint=args.checkpoint, device=args.device)
    else:
        model = TextTo3D.from_pretrained(args.model, text_encoder=args.text_encoder, device=args.device)
    look = look_of(args, model)
    check_memory(args, formats, on_cpu=model.device.type == "cpu")
    sample = texts[:PROMPTS_CHECKED]
    for note in model.texts.notes_on(sample, sampled=len(texts) > len(sample), generator_only=True):
        print(f"note: {note}")
    with open_index(args.output) as index:
        # 2. What is missing.
        records = {format: settings_of(args, look, format) for format in formats}
        total, todo, remade = 0, [], 0
        for total, job in enumerate(_jobs(args, texts), 1):  # noqa: B007
            missing = [f for f in formats if not index.has(job.name, f, _record(job, f, model, records[f]))]
            remade += any(index.made_differently(job.name, format) for format in missing)
            todo += [(job, missing)] if missing else []
        if total > len(todo):
            print(f"note: {count(total - len(todo), 'object')} in {args.output}: complete, skipped")
        if remade:
            print(f"note: {count(remade, 'object')} of another model or other settings: made again")
        # 3. One object at a time: memory does not grow with their number. (More prompts per forward pass are
        #    not faster: rendering takes nearly all of the time.)
        progress = progress_bar("generating", quiet=False)
        for done, (job, missing) in enumerate(todo):
            progress(done, len(todo))
            pictures = _pictures(args, model, job, look)
            for format in missing:
                record = _record(job, format, model, records[format])
                with writing(args.output):
                    save_pictures(pictures, args.output / record["file"], format, args.fps)
                if "depth" in look.show:
                    record["depth_range"] = pictures.depth_range
                index.add(job.name, job.about, format, record)
        if todo:
            progress(len(todo), len(todo))
    print(f"{count(total, 'object')} in {args.output}")
    return 0


def _jobs(args: argparse.Namespace, texts: Sequence[str]) -> Iterator[Job]:
    from amortized.names import slug

    for prompts in [tuple(texts)] if args.interpolate else [(text,) for text in texts]:
        for seed in range(args.seed, args.seed + args.seeds):
            if len(prompts) == 1:
                about = {"prompt": prompts[0], "seed": seed, "slug": slug(prompts[0])}
                yield Job(name=f"{about['slug']}_{seed}", prompts=prompts, seed=seed, about=about)
            else:
                name = f"{slug(prompts[0])}_to_{slug(prompts[1])}_{args.method or 'lerp'}_{seed}"
                yield Job(
                    name=name, prompts=prompts, seed=seed, about={"prompts": list(prompts), "seed": seed}
                )


def _pictures(args: argparse.Namespace, model: TextTo3D, job: Job, look: Look) -> Pictures:
    from amortized.generation.pictures import object_pictures, pictures_between

    sizes = {"num_views": num_views(args), "num_frames": args.frames}
    if len(job.prompts) == 1:
        return object_pictures(model, job.prompts[0], job.seed, look, **sizes)
    first, second = job.prompts
    method = args.method or "lerp"
    return pictures_between(model, (first, second), job.seed, look, method=method, loop=args.loop, **sizes)


def _record(job: Job, format: str, model: TextTo3D, settings: dict[str, Any]) -> dict[str, Any]:
    return {"file": f"{job.name}.{format}", "model": model.identity, "settings": settings}


def _texts(args: argparse.Namespace) -> list[str]:
    """The distinct prompts of the command line and of --prompts, in order."""
    from corpora import open_corpus, prompt_list

    corpora = [prompt_list(args.texts, "PROMPT")] if args.texts else []
    corpora += [open_corpus(args.prompts)] if args.prompts is not None else []
    return list(dict.fromkeys(corpus[i].text for corpus in corpora for i in range(len(corpus))))


def _check_source(args: argparse.Namespace, is_run: bool) -> None:
    if not args.texts and args.prompts is None:
        raise ValueError("there is nothing to generate: give a PROMPT, or --prompts FILE")
    if is_run and args.text_encoder:
        raise ValueError("--text-encoder is for exported folders: a run names its text encoder itself")
    if not is_run and args.checkpoint != "newest":
        raise ValueError(f"--checkpoint is for runs, and {args.model} is not one: an export has a single one")
