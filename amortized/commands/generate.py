"""Turn prompts into pictures and turntables with a trained generator.

  amortized generate outputs/quickstart "a red cube" "a blue sphere"
  amortized generate exported/quickstart --prompts prompts.txt --output pictures --seeds 4

Writes one strip of views (PNG) and one turntable (MP4) per prompt and seed, named by the prompt, and
index.json with the prompts. Later calls add to the same folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from amortized import arguments
from amortized.arguments import path, path_text, whole

INDEX_LIMIT = 2**29  # bytes
PROMPTS_CHECKED = 4096  # at the start: those that will be cut, and their unknown words
MAX_PIXELS = 2**28  # of one object: with their RGB in float32, 3 GiB


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
        "--seeds", type=whole(1, 10**6), default=1, help="variants per prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--views", type=whole(1, 256), default=4, help="views in a strip (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=whole(1, 4096), default=128, help="pixels per side (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=whole(0, 10_000), default=24, help="frames of a turntable; 0: none (%(default)s)"
    )
    parser.add_argument("--checkpoint", default="newest", help="of a run: newest, best, or a name")
    parser.add_argument(
        "--text-encoder", type=path_text, help="of an exported folder: the folder of its text encoder"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Generate as `args` say; returns the exit status."""
    if max(args.views, args.frames) * args.size**2 > MAX_PIXELS:
        raise ValueError(
            f"--size {args.size} with --views {args.views} and --frames {args.frames} makes more than "
            f"{MAX_PIXELS:,} pixels at once: lower one of them"
        )
    if not args.texts and args.prompts is None:
        raise ValueError("there is nothing to generate: give a PROMPT, or --prompts FILE")
    is_run = (Path(args.model) / "config.yaml").exists()
    if is_run and args.text_encoder:
        raise ValueError("--text-encoder is for exported folders: a run names its text encoder itself")
    if not is_run and args.checkpoint != "newest":
        raise ValueError(f"--checkpoint is for runs, and {args.model} is not one: an export has a single one")
    from amortized.cli import progress_bar
    from amortized.evaluation.folder import writing
    from amortized.generation import TextTo3D
    from amortized.media import save_strip, save_turntable
    from amortized.names import slug
    from amortized.wording import count
    from corpora import open_corpus, prompt_list

    # 1. The prompts, the folder, the model.
    corpora = [prompt_list(args.texts, "PROMPT")] if args.texts else []
    corpora += [open_corpus(args.prompts)] if args.prompts is not None else []
    texts = list(dict.fromkeys(corpus[i].text for corpus in corpora for i in range(len(corpus))))
    output = args.output
    index = _read_index(output / "index.json")
    if is_run:
        model = TextTo3D.from_run(args.model, checkpoint=args.checkpoint, device=args.device)
    else:
        model = TextTo3D.from_pretrained(args.model, text_encoder=args.text_encoder, device=args.device)
    sample = texts[:PROMPTS_CHECKED]
    for note in model.texts.notes_on(sample, sampled=len(texts) > len(sample), generator_only=True):
        print(f"note: {note}")
    # 2. One scene at a time: memory does not grow with the number of prompts.
    strip, ring = model.orbit(num_views=args.views), model.orbit(num_views=max(1, args.frames))
    jobs = [(text, seed) for text in texts for seed in range(args.seeds)]
    progress = progress_bar("generating", quiet=False)
    try:
        for number, (text, seed) in enumerate(jobs, 1):
            name = f"{slug(text)}_{seed}"
            scene = model.scenes([text], seed=seed)
            entry = {"prompt": text, "seed": seed, "slug": slug(text), "strip": f"{name}.png"}
            with writing(output):
                save_strip(output / entry["strip"], model.images(scene, strip, args.size).rgb[0].cpu())
            if args.frames:
                entry["turntable"] = f"{name}.mp4"
                frames = model.images(scene, ring, args.size).rgb[0].cpu()
                with writing(output):
                    save_turntable(output / entry["turntable"], frames, fps=12.0)
            index[entry["strip"]] = entry
            progress(number, len(jobs))
    finally:
        # 3. Which file shows which prompt, also if a later one failed.
        if index:
            _write_index(output / "index.json", index)
    print(f"{count(len(jobs), 'object')} in {output}")
    return 0


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of earlier calls, by strip. Raises ValueError for a file that generate did not write."""
    from amortized.untrusted import read_json, short

    if not path.exists():
        return {}
    try:
        entries = read_json(path, INDEX_LIMIT)
        if not isinstance(entries, list):
            raise TypeError("not a list")
        return {str(entry["strip"]): {**entry, "seed": entry["seed"]} for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{short(path)} was not written by generate: choose another folder (--output)"
        ) from error


def _write_index(path: Path, index: dict[str, dict[str, Any]]) -> None:
    from amortized.evaluation.folder import writing
    from amortized.files import atomic_write_text

    with writing(path):
        atomic_write_text(path, json.dumps(list(index.values()), indent=1, ensure_ascii=False) + "\n")
