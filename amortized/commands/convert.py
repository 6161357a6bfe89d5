"""Convert published weights to folders of this project.

  amortized convert scaledreamer MG15_hyper_iNGP.pth exported/mg15 --corpus mg15
  amortized convert mvdream sd-v2.1-base-4view.pt checkpoints/mvdream --tokenizer SD2_FOLDER
  amortized convert image-reward ImageReward.pt checkpoints/image-reward --vocabulary vocab.txt

`scaledreamer` writes an exported generator, for generate: Hyper-iNGP, 3DConv-net or Triplane-Transformer.
`mvdream` writes a prior, for prior=FOLDER. `image-reward` writes a judge, for evaluate. Files
are read as tensors only: one that holds code is refused.
"""

from __future__ import annotations

import argparse

from amortized.arguments import path, path_text, text
from amortized.wording import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each kind of published file."""
    kinds = parser.add_subparsers(required=True, metavar="KIND")

    kind = kinds.add_parser("scaledreamer", help="a generator of ScaleDreamer, to an exported folder")
    kind.add_argument("file", type=path, help="a checkpoint (.pth or .ckpt)")
    kind.add_argument("folder", type=path, help="the folder to write; must not exist")
    kind.add_argument(
        "--corpus", type=text, required=True, help="that it was trained on, for the model card, such as mg15"
    )
    kind.add_argument(
        "--text-encoder",
        type=path_text,
        help="a folder of Stable Diffusion 2.1-base, to record its fingerprint (default: its Hub id)",
    )
    kind.set_defaults(convert=_scaledreamer)

    kind = kinds.add_parser("mvdream", help="MVDream's diffusion model, to a prior in diffusers format")
    kind.add_argument("file", type=path, help="sd-v2.1-base-4view.pt")
    kind.add_argument("folder", type=path, help="output folder of the converted prior")
    kind.add_argument(
        "--tokenizer", type=path_text, required=True, help="a Stable Diffusion 2.x folder, for its tokenizer"
    )
    kind.set_defaults(convert=_mvdream)

    kind = kinds.add_parser("image-reward", help="ImageReward, to a judge of evaluate --protocol")
    kind.add_argument("file", type=path, help="ImageReward.pt")
    kind.add_argument("folder", type=path, help="the folder to write; must not exist")
    kind.add_argument(
        "--vocabulary", type=path, required=True, help="vocab.txt of bert-base-uncased, for its tokenizer"
    )
    kind.set_defaults(convert=_image_reward)


def run(args: argparse.Namespace) -> int:
    """Convert as `args` say; returns the exit status."""
    args.convert(args)
    return 0


def _scaledreamer(args: argparse.Namespace) -> None:
    from amortized.generation.convert_scaledreamer import convert

    structure = convert(args.file, args.folder, args.corpus, args.text_encoder)
    next_step = command("generate", args.folder, "a prompt")
    print(f"wrote {args.folder}, a {structure.generator.name}; next: {next_step}")


def _mvdream(args: argparse.Namespace) -> None:
    from amortized.priors.convert_mvdream import convert

    convert(args.file, args.folder, args.tokenizer)
    print(f"wrote {args.folder}; train with prior={args.folder}")


def _image_reward(args: argparse.Namespace) -> None:
    from amortized.evaluation.judges.convert_image_reward import convert

    convert(args.file, args.folder, args.vocabulary)
    print(f"wrote {args.folder}; evaluate with --protocol t3bench-quality --judge image-reward={args.folder}")
