"""Train the embedded models: `python -m corpora.shapes.recipe` (or `make weights`).

Every stage saves its state; run the same command again to resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

STAGES = ("clip", "prior", "multi-view")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m corpora.shapes.recipe", description=__doc__)
    add = parser.add_argument
    add("stages", nargs="*", choices=[*STAGES, []], help=f"what to train (default: {' '.join(STAGES)})")
    add("--work", type=Path, default=Path("outputs/weights"), help="folder for images and training state")
    add("--output", type=Path, default=Path("checkpoints"), help="folder for the finished models")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    for stage in arguments.stages or STAGES:
        # The prior's stages run the two halves of a batch in two threads.
        torch.set_num_threads(arguments.threads if stage == "clip" else max(1, arguments.threads // 2))
        if stage == "clip":
            from corpora.shapes.recipe.clip import make_clip

            make_clip(arguments.work, arguments.output / "shapes-clip")
            continue
        clip, single = arguments.output / "shapes-clip", arguments.output / "shapes-prior"
        if not (clip / "open_clip_model.safetensors").exists():
            parser.error(
                f"the prior is scored with a CLIP, but {clip} has none; "
                f"first run: python -m corpora.shapes.recipe clip --output {arguments.output}"
            )
        if stage == "prior":
            from corpora.shapes.recipe.prior import make_prior

            make_prior(arguments.work, single, clip)
        else:
            from corpora.shapes.recipe.multi_view import make_multi_view

            make_multi_view(arguments.work, arguments.output / "shapes-multi-view", single, clip)


if __name__ == "__main__":
    main()
