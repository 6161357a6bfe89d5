"""The contract of a judge, and what all judges share: a digest, and Pillow's resizing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

Filter = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Judge(Protocol):
    """Scores how well images show texts. Images are encoded once, for any number of texts.

    A class of yours needs these four, and is built as `Class(device)`, with a torch.device.
    """

    name: str  # in results and file names
    digest: str  # of weights and preprocessing: two numbers compare only if their digests are equal

    def encode(self, images: Tensor) -> Any:
        """Whatever `score` needs of N images [N, H, W, 3] in [0, 1]."""
        ...

    def score(self, encoded: Any, texts: Sequence[str]) -> Tensor:
        """Scores [N, M] of N encoded images with M texts; the higher, the better."""
        ...


def digest_of(network: nn.Module, preprocessing: Mapping[str, Any]) -> str:
    """SHA-256 of a network's weights, by name, and of its preprocessing, plain values."""
    digest = hashlib.sha256(json.dumps(preprocessing, sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def resized(images: Tensor, size: tuple[int, int], method: Filter) -> Tensor:
    """Images [N, h, w, 3] from images [N, H, W, 3] in [0, 1], in 8 bits by Pillow, as published scores are.

    The center square of other images is taken. Returns float32 on the CPU.
    """
    side = min(images.shape[1:3])
    top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
    pixels = images[:, top : top + side, left : left + side].float().clamp(0, 1).mul(255).round()
    pictures = (Image.fromarray(pixel) for pixel in pixels.to(torch.uint8).cpu().numpy())
    height, width = size
    small = [np.asarray(picture.resize((width, height), FILTERS[method])) for picture in pictures]
    return torch.from_numpy(np.stack(small)).float() / 255


def checked_scores(scores: Any, judge: Judge, num_images: int, num_texts: int) -> Tensor:
    """A judge's scores [N, M], float64 on the CPU. Raises ValueError if they have another shape."""
    if not isinstance(scores, Tensor) or scores.shape != (num_images, num_texts):
        shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"the judge {judge.name} must return scores [{num_images}, {num_texts}], of {num_images} images "
            f"with {num_texts} texts, but returned {shape}"
        )
    return scores.detach().double().cpu()
