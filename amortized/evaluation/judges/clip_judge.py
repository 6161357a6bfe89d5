"""CLIP as a judge: the cosine of an image with a text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amortized.evaluation.clip import ClipScorer
from amortized.evaluation.judges.judge import Filter, digest_of, resized


class ClipJudge:
    """The cosines of a CLIP, whose images are resized as in its training, or by Pillow with `resize`."""

    def __init__(self, scorer: ClipScorer, *, resize: Filter | None = None) -> None:
        self.scorer = scorer
        self.resize: Filter | None = resize
        self.name = "clip" if resize is None else f"clip-{resize}"
        preprocessing = {
            "size": list(scorer.size),
            "mean": scorer.mean.flatten().tolist(),
            "std": scorer.std.flatten().tolist(),
            "resize": scorer.interpolation if resize is None else f"Pillow {resize}",
        }
        self.digest = digest_of(scorer.model, preprocessing)
        self._texts: tuple[str, ...] = ()
        self._embeddings: Tensor | None = None  # of these texts

    def encode(self, images: Tensor) -> Tensor:
        """Unit embeddings [N, D] of images [N, H, W, 3] in [0, 1]."""
        if self.resize is not None:
            images = resized(images, self.scorer.size, self.resize)
        return self.scorer.encode_images(images)

    def score(self, encoded: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosines [N, M] with M texts, which are encoded once if they are the same at the next call."""
        if self._embeddings is None or self._texts != tuple(texts):
            self._texts, self._embeddings = tuple(texts), self.scorer.encode_texts(texts)
        return encoded @ self._embeddings.T
