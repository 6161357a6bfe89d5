"""Judges: networks that score how well an image shows a text."""

from __future__ import annotations

from pathlib import Path

import torch

from amortized.evaluation.clip import load_clip
from amortized.evaluation.judges.clip_judge import ClipJudge
from amortized.evaluation.judges.image_reward import ImageRewardJudge, load_image_reward
from amortized.evaluation.judges.judge import Judge, checked_scores
from amortized.evaluation.judges.own import load_own
from amortized.untrusted import short
from amortized.wording import command

__all__ = ["ClipJudge", "ImageRewardJudge", "Judge", "checked_scores", "load_judge"]


def load_judge(spec: str, *, clip: str, device: torch.device, allow_network: bool = False) -> Judge:
    """The judge that a text names: clip, clip-bilinear, image-reward=FOLDER, or a class as module:Class.

    The text must come from the user, since importing a class runs its code.

    clip           the CLIP of `clip` and `clip-bilinear`, unless they name one: clip=FOLDER
    allow_network  download a CLIP that is not cached

    Raises ValueError for other texts, and for a judge that cannot be loaded.
    """
    name, _, folder = spec.partition("=")
    if name in ("clip", "clip-bilinear"):
        scorer = load_clip(folder or clip, device=device, allow_network=allow_network)
        return ClipJudge(scorer, resize="bilinear" if name == "clip-bilinear" else None)
    if name == "image-reward":
        if not folder:
            make = command("convert", "image-reward", "ImageReward.pt", "FOLDER", "--vocabulary", "vocab.txt")
            raise ValueError(f"the judge image-reward needs a folder: image-reward=FOLDER, made by {make}")
        return load_image_reward(Path(folder).expanduser(), device)
    if ":" in spec and "=" not in spec:
        return load_own(spec, device)
    raise ValueError(
        f"there is no judge {short(spec)}: name clip, clip-bilinear, image-reward=FOLDER, or a class of "
        "yours as module:Class"
    )
