"""Turn prompts into pictures, videos and 3D files with a trained generator.

  amortized generate outputs/quickstart "a red cube" "a blue sphere"
  amortized generate exported/quickstart --prompts prompts.txt --output pictures --seeds 4
  amortized generate outputs/quickstart "a red cube" --format glb,stl --faces 5000
  amortized generate outputs/quickstart "a red cube" --format splat --splats 5000
  amortized generate outputs/quickstart "a red cube" --camera orbit --show rgb,normal,depth,opacity
  amortized generate outputs/quickstart --interpolate "a red cube" "a blue sphere" --method slerp --loop

Writes one strip of views (PNG) and one video (MP4) per prompt and seed, or the chosen formats, named by the
prompt, index.json with the prompts, the model and the settings, and index.html, a page that shows all
objects, those with a GLB or splats in 3D. Later calls add to the same folder: what is complete is skipped,
what was made by another model or with other settings is made again. A run of one prompt needs no PROMPT.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized import arguments
from amortized.arguments import names, path, path_text, whole
from amortized.commands import asset_options, picture_options, splat_options
from amortized.commands.asset_options import AssetJob
from amortized.commands.picture_options import num_views

if TYPE_CHECKING:
    from amortized.commands.generated import Index
    from amortized.generation import ModelSource, TextTo3D
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
        "--format",
        type=names((*picture_options.FORMATS, *asset_options.FORMATS, *splat_options.FORMATS)),
        help="what to write: png, mp4, webp, glb, ply, obj, stl, 3mf, usdz, splat, splat-ply "
        "(default: png,mp4; of splats png,mp4,splat)",
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
    picture_options.add_picture_arguments(parser)
    asset_options.add_asset_arguments(parser)
    splat_options.add_splat_arguments(parser)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The files of one prompt, or of the way between two."""

    name: str  # of the files, without suffix
    prompts: tuple[str, ...]
    seed: int
    about: dict[str, Any]  # for the index


def run(args: argparse.Namespace) -> int:
    """Generate as `args` say; returns the exit status: 1 if an object has no surface to export."""
    formats = picture_options.picture_formats(args)
    solid = [format for format in args.format or () if format not in picture_options.FORMATS]
    if args.interpolate and solid:
        raise ValueError(f"--interpolate makes pictures and videos, no {solid[0]}: omit one of the two")
    formats += solid
    source = _checked_source(args)
    from amortized.commands.generated import open_index, read_index
    from amortized.gallery import PAGE
    from amortized.wording import command, count

    # 1. The prompts, the model.
    texts = _texts(args)
    if args.interpolate and len(texts) != 2:
        raise ValueError(f"--interpolate needs exactly two different prompts, got {len(texts)}")
    read_index(args.output)  # refuse a folder of others before loading the model
    model = source.load()
    texts = _checked_texts(texts, model)
    splat_options.check_splats(args, model)
    if args.format is None and model.makes_splats and not args.interpolate:
        formats += splat_options.DEFAULT
    look = picture_options.look_of(args, model)
    picture_options.check_memory(args, formats, on_cpu=model.device.type == "cpu")
    sample = texts[:PROMPTS_CHECKED]
    for note in model.texts.notes_on(sample, sampled=len(texts) > len(sample), generator_only=True):
        print(f"note: {note}")
    with open_index(args.output) as index:
        # 2. What is missing.
        records = {format: _settings(args, model, look, format) for format in formats}
        total, todo, remade = 0, [], 0
        for total, job in enumerate(_jobs(args, texts), 1):  # noqa: B007
            missing = [f for f in formats if not index.has(job.name, f, _record(job, f, model, records[f]))]
            remade += any(index.made_differently(job.name, format) for format in missing)
            todo += [(job, missing)] if missing else []
        if total > len(todo):
            print(f"note: {count(total - len(todo), 'object')} in {args.output}: complete, skipped")
        if remade:
            print(f"note: {count(remade, 'object')} of another model or other settings: made again")
        # 3. Make it.
        _make_pictures(args, model, look, todo, records, index)
        failed = _make_splats(args, model, todo, records, index)
        failed += _make_assets(args, source, model, todo, records, index)
    for prompt, reason in failed:
        print(f"note: {prompt!r} has no asset: {reason}")
    print(
        f"{count(total, 'object')} in {args.output}"
        + (f", {len(dict.fromkeys(failed))} without an asset" if failed else "")
    )
    if index.without_page:
        print(f"note: there is no page: {index.without_page}")
    elif (args.output / PAGE).exists():
        print(f"page: {args.output / PAGE} (in a browser: {command('view', args.output)})")
    return 1 if failed else 0


def _make_pictures(
    args: argparse.Namespace,
    model: TextTo3D,
    look: Look,
    todo: Sequence[tuple[Job, list[str]]],
    records: dict[str, dict[str, Any]],
    index: Index,
) -> None:
    """Make the missing pictures, one object at a time: memory does not grow with their number.

    More prompts per forward pass are not faster: rendering takes nearly all of the time.
    """
    from amortized.cli import progress_bar
    from amortized.evaluation.folder import writing
    from amortized.generation.pictures import save_pictures

    chosen = [(job, [f for f in missing if f in picture_options.FORMATS]) for job, missing in todo]
    chosen = [(job, missing) for job, missing in chosen if missing]
    progress = progress_bar("pictures", quiet=not chosen)
    for done, (job, missing) in enumerate(chosen):
        progress(done, len(chosen))
        pictures = _pictures(args, model, job, look)
        for format in missing:
            record = _record(job, format, model, records[format])
            with writing(args.output):
                save_pictures(pictures, args.output / record["file"], format, args.fps)
            if "depth" in look.show:
                record["depth_range"] = pictures.depth_range
            index.add(job.name, job.about, {format: record})
    progress(len(chosen), len(chosen))


def _make_splats(
    args: argparse.Namespace,
    model: TextTo3D,
    todo: Sequence[tuple[Job, list[str]]],
    records: dict[str, dict[str, Any]],
    index: Index,
) -> list[tuple[str, str]]:
    """Make the missing files of splats; returns the prompts whose objects have none, with the reasons."""
    from amortized.cli import progress_bar
    from amortized.evaluation.folder import writing

    chosen = [(job, [f for f in missing if f in splat_options.FORMATS]) for job, missing in todo]
    chosen = [(job, missing) for job, missing in chosen if missing]
    progress, failed, numbers = progress_bar("splats", quiet=not chosen), [], set[int]()
    for done, (job, missing) in enumerate(chosen):
        progress(done, len(chosen))
        made = {format: _record(job, format, model, records[format]) for format in missing}
        paths = {format: args.output / record["file"] for format, record in made.items()}
        try:
            scene = splat_options.splats_of(args, model, job.prompts[0], job.seed)
        except ValueError as error:
            failed.append((job.prompts[0], str(error)))
            continue
        with writing(args.output):
            number = splat_options.save_splats(scene, paths)
        numbers.add(number)
        index.add(
            job.name, job.about, {format: record | {"splats": number} for format, record in made.items()}
        )
    progress(len(chosen), len(chosen))
    if numbers:
        print(f"note: {' or '.join(f'{number:,}' for number in sorted(numbers))} splats for each object")
    return failed


def _make_assets(
    args: argparse.Namespace,
    source: ModelSource,
    model: TextTo3D,
    todo: Sequence[tuple[Job, list[str]]],
    records: dict[str, dict[str, Any]],
    index: Index,
) -> list[tuple[str, str]]:
    """Make the missing assets; returns the prompts whose objects have no surface, with the reasons."""
    formats = [format for format in records if format in asset_options.FORMATS]
    jobs = {}
    for job, missing in todo:
        if wanted := tuple(format for format in missing if format in formats):
            config = asset_options.asset_config(args, wanted)
            jobs[job.name] = (
                job,
                AssetJob(name=job.name, prompt=job.prompts[0], seed=job.seed, formats=wanted, config=config),
            )
    if not jobs:
        return []
    from amortized.assets import check_libraries
    from amortized.cli import progress_bar
    from amortized.commands.asset_pool import AssetFiles, make_assets

    check_libraries(asset_options.asset_config(args, formats), formats)
    files = AssetFiles(
        folder=args.output,
        license=args.license or "",
        options=asset_options.file_options(args),
    )
    workers = asset_options.num_workers(args, len(jobs), on_cpu=model.device.type == "cpu")
    progress, failed = progress_bar("assets", quiet=False), []
    progress(0, len(jobs))
    made = make_assets(source, model, [asset_job for _, asset_job in jobs.values()], files, workers)
    for done, (asset_job, reason) in enumerate(made, 1):
        job, _ = jobs[asset_job.name]
        if reason:
            failed.append((asset_job.prompt, reason))
        else:
            # Together: a file alone would be made alone after a kill, and replace the report of all of them.
            recorded = {f: _record(job, f, model, records[f]) for f in asset_job.formats}
            index.add(job.name, job.about, recorded)
        progress(done, len(jobs))
    return failed


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


def _settings(args: argparse.Namespace, model: TextTo3D, look: Look, format: str) -> dict[str, Any]:
    if format in asset_options.FORMATS:
        return asset_options.asset_settings(args, format)
    if format in splat_options.FORMATS:
        return splat_options.splat_settings(args, model)
    return picture_options.settings_of(args, look, format)


def _record(job: Job, format: str, model: TextTo3D, settings: dict[str, Any]) -> dict[str, Any]:
    suffix = (asset_options.SUFFIXES | splat_options.SUFFIXES).get(format, f".{format}")
    return {"file": f"{job.name}{suffix}", "model": model.identity, "settings": settings}


def _texts(args: argparse.Namespace) -> list[str]:
    """The distinct prompts of the command line and of --prompts, in order."""
    from corpora import open_corpus, prompt_list

    corpora = [prompt_list(args.texts, "PROMPT")] if args.texts else []
    corpora += [open_corpus(args.prompts)] if args.prompts is not None else []
    return list(dict.fromkeys(corpus[i].text for corpus in corpora for i in range(len(corpus))))


def _checked_texts(texts: list[str], model: TextTo3D) -> list[str]:
    """The texts to generate: those given, or the prompt that the model was trained on alone.

    Raises ValueError if there is none, or for texts that a single object ignores.
    """
    from corpora.prompts import normalized

    if not texts and model.prompt is None:
        raise ValueError("there is nothing to generate: give a PROMPT, or --prompts FILE")
    texts = texts or [model.prompt or ""]
    if not model.one_object:
        return texts
    if model.prompt is None and len(texts) > 1:
        raise ValueError(f"the model is one object, whatever the text: give one PROMPT, not {len(texts):,}")
    if model.prompt is None:
        print("note: the model is one object, whatever the text")
    elif others := [text for text in texts if normalized(text) != normalized(model.prompt)]:
        raise ValueError(
            f"the model is one object, {model.prompt!r}, and ignores the text {others[0]!r}: omit it, or "
            "train another run"
        )
    return [model.prompt or texts[0]]


def _checked_source(args: argparse.Namespace) -> ModelSource:
    """The source of the model. Raises ValueError for options that do not fit it."""
    is_run = (Path(args.model) / "config.yaml").exists()
    if is_run and args.text_encoder:
        raise ValueError("--text-encoder is for exported folders: a run names its text encoder itself")
    if not is_run and args.checkpoint != "newest":
        raise ValueError(f"--checkpoint is for runs, and {args.model} is not one: an export has a single one")
    from amortized.generation import ModelSource

    return ModelSource(
        path=args.model,
        is_run=is_run,
        checkpoint=args.checkpoint,
        text_encoder=args.text_encoder,
        device=args.device,
    )
