"""Turn prompts into pictures and turntables with a trained generator.

  amortized generate outputs/quickstart "a red cube" "a blue sphere"
  amortized generate exported/quickstart --prompts prompts.txt --output pictures --seeds 4

Writes one strip of views (PNG) and one turntable (MP4) per prompt and seed, named by the prompt's hash, and
index.json with the prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

PROMPTS_CHECKED = 4096  # at the start: those that will be cut, and their unknown words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run's folder, an exported folder, or a Hub id in the local cache")
    parser.add_argument("texts", nargs="*", metavar="PROMPT", help="any text")
    parser.add_argument("--prompts", help="a corpus or a file of prompts, as in corpus=")
    parser.add_argument(
        "--output", type=Path, default=Path("generated"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="variants per prompt (default: %(default)s)")
    parser.add_argument("--views", type=int, default=4, help="views in a strip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels per side (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=24, help="frames of a turntable; 0: none (%(default)s)")
    parser.add_argument("--checkpoint", default="newest", help="of a run: newest, best, or a name")
    parser.add_argument("--text-encoder", help="of an exported folder: the folder of its text encoder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Generate as `args` say; returns the exit status."""
    for name in ("seeds", "views", "size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.frames < 0:
        raise ValueError(f"--frames must be 0 or more, got {args.frames}")
    if not args.texts and not args.prompts:
        raise ValueError("there is nothing to generate: give a PROMPT, or --prompts FILE")
    is_run = (Path(args.model) / "config.yaml").exists()
    if is_run and args.text_encoder:
        raise ValueError("--text-encoder is for exported folders: a run names its text encoder itself")
    if not is_run and args.checkpoint != "newest":
        raise ValueError(f"--checkpoint is for runs, and {args.model} is not one: an export has a single one")
    from amortized.cli import progress_bar
    from amortized.files import atomic_write_text
    from amortized.generation import TextTo3D
    from amortized.media import save_strip, save_turntable
    from amortized.names import text_hash
    from corpora import open_corpus

    # 1. The prompts and the model.
    texts = list(args.texts)
    if args.prompts:
        corpus = open_corpus(args.prompts)
        texts += [corpus[i].text for i in range(len(corpus))]
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
    progress, index = progress_bar("generating", quiet=False), []
    for number, (text, seed) in enumerate(jobs, 1):
        name = f"{text_hash(text)}_{seed}"  # a prompt never names a file
        scene = model.scenes([text], seed=seed)
        entry = {"prompt": text, "seed": seed, "strip": f"{name}.png"}
        save_strip(args.output / entry["strip"], model.images(scene, strip, args.size).rgb[0].cpu())
        if args.frames:
            entry["turntable"] = f"{name}.mp4"
            frames = model.images(scene, ring, args.size).rgb[0].cpu()
            save_turntable(args.output / entry["turntable"], frames, fps=12.0)
        index.append(entry)
        progress(number, len(jobs))
    # 3. Which file shows which prompt.
    atomic_write_text(args.output / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(jobs)} objects in {args.output}")
    return 0
