"""Renders every prompt of a corpus at fixed views, scores it, and writes strips and turntables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.evaluation.metrics import recall_at_1
from amortized.evaluation.results import PromptRow, Results, summarize
from amortized.evaluation.truth import TruthScene, TruthScores, score_truths
from amortized.media import save_strip, save_turntable
from amortized.types import Cameras, GroundTruth, Prompt, Render, Scene

SceneFor = Callable[[list[Prompt]], Scene]


class Renderer(Protocol):
    """Renders all cameras [P, V] of a scene at one image size, no gradient wanted."""

    def __call__(self, scene: Scene, cameras: Cameras, height: int, width: int) -> Render: ...


class Scorer(Protocol):
    """A text-image model; both results are unit vectors."""

    def encode_images(self, images: Tensor) -> Tensor:
        """[N, D] of images [N, H, W, 3] in [0, 1]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """[M, D]"""
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How objects are looked at and judged; equal settings make scores comparable."""

    clip: str = "checkpoints/clip"  # folder in open_clip's format, or "ViT-L-14/openai"
    # Recall@1 is among the texts of the whole corpus, or of the prompts asked for; distractors in both.
    gallery: Literal["corpus", "asked"] = "corpus"
    views: int = 8  # evenly spaced, the first in front
    elevation_deg: float = 20.0
    distance: float = 2.6
    fovy_deg: float = 40.0
    image_size: int = 64  # px, of the scored views
    background: float = 0.5  # gray behind the object, in [0, 1]
    own_background: bool = False  # show the scene's own background, where it has one
    turntable_frames: int = 24  # 0 writes no turntables
    turntable_size: int = 96  # px
    turntable_fps: float = 12.0
    grid: int = 64  # cells a side for the volumetric overlap
    prompts_per_batch: int = 4
    views_per_render: int = 8  # at most so many views of a batch are rendered at once
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        for name in (
            "views",
            "image_size",
            "turntable_size",
            "prompts_per_batch",
            "views_per_render",
            "grid",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        if self.turntable_frames < 0:
            raise ValueError(
                f"evaluation.turntable_frames must be 0 (none) or more, got {self.turntable_frames}"
            )
        for name in ("distance", "turntable_fps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"evaluation.{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.fovy_deg < 180:
            raise ValueError(f"evaluation.fovy_deg must lie in (0, 180), got {self.fovy_deg}")
        if not -90 <= self.elevation_deg <= 90:
            raise ValueError(f"evaluation.elevation_deg must lie in [-90, 90], got {self.elevation_deg}")
        if not 0 <= self.background <= 1:
            raise ValueError(f"evaluation.background must lie in [0, 1], got {self.background}")


@torch.no_grad()
def evaluate(
    *,
    scene_for: SceneFor,
    render: Renderer,
    prompts: Sequence[Prompt],
    gallery_texts: Iterable[str],
    scorer: Scorer,
    corpus_truth: Callable[[Prompt], GroundTruth | None],
    start_scene_for: SceneFor | None = None,
    settings: EvaluationConfig,
    folder: str | Path,
    name: str = "",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Scores of the given prompts; `strips/` and `turntables/` are written into `folder`.

    scene_for        the trained generator, for up to `settings.prompts_per_batch` prompts
    render           closes over background and sampling; must not keep a graph
    gallery_texts    all texts of the whole corpus and the distractors, also where `prompts` is a
                     part of them: recall is comparable only over equal galleries
    start_scene_for  the untrained generator, for the IoU to compare with
    device           where cameras and query points are made: the generator's
    progress         called with (prompts done, prompts in all) after each batch

    Several processes each evaluate a share of the prompts; then `merge_rows` and `summarize`.
    """
    _check_ids(prompts)
    columns = _gallery(prompts, gallery_texts)
    gallery = scorer.encode_texts([text for text, _ in columns.values()])  # [G, D]
    rows: list[PromptRow] = []
    for start in range(0, len(prompts), settings.prompts_per_batch):
        batch = list(prompts[start : start + settings.prompts_per_batch])
        scene = scene_for(batch)
        views = _ring(scene, render, len(batch), settings.views, settings.image_size, settings, device)
        own = torch.tensor([columns[_key(prompt.text)][1] for prompt in batch])
        similarity, recall = _text_scores(scorer.encode_images(views.flatten(0, 1)), gallery, own)
        truths = [corpus_truth(prompt) for prompt in batch]
        ceilings = [
            _recall_of_truth(truth, render, scorer, gallery, own[p : p + 1], settings, device)
            for p, truth in enumerate(truths)
        ]
        scores: Sequence[TruthScores | None] = [None] * len(batch)
        if any(truth is not None for truth in truths):
            start_scene = start_scene_for(batch) if start_scene_for is not None else None
            scores = score_truths(
                scene, truths, start_scene=start_scene, resolution=settings.grid, device=device
            )
        strips, turntables = _write_media(batch, views, scene, render, settings, Path(folder), device)
        rows += [
            _row(
                prompt,
                truths[p],
                scores[p],
                clip_similarity=float(similarity[p]),
                recall=float(recall[p]),
                recall_of_truth=ceilings[p],
                strip=strips[p],
                turntable=turntables[p],
            )
            for p, prompt in enumerate(batch)
        ]
        if progress is not None:
            progress(len(rows), len(prompts))
    return summarize(rows, name=name, gallery=len(columns), settings=asdict(settings), seed=settings.seed)


def _text_scores(images: Tensor, gallery: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine with the own text and recall@1, both [P], of image embeddings [P * V, D]."""
    num_views = len(images) // len(own)
    own = own.repeat_interleave(num_views)  # [P * V], prompt-major
    similarity = images @ gallery.T  # [P * V, G]
    cosine = similarity.gather(1, own[:, None]).squeeze(1)
    right = recall_at_1(similarity, own).float()
    return cosine.reshape(-1, num_views).mean(1), right.reshape(-1, num_views).mean(1)


def _recall_of_truth(
    truth: GroundTruth | None,
    render: Renderer,
    scorer: Scorer,
    gallery: Tensor,
    own: Tensor,
    settings: EvaluationConfig,
    device: torch.device | str,
) -> float | None:
    """What the true object itself scores, rendered and judged in the same way; None without a truth."""
    if truth is None:
        return None
    views = _ring(TruthScene(truth=truth), render, 1, settings.views, settings.image_size, settings, device)
    return float(_text_scores(scorer.encode_images(views.flatten(0, 1)), gallery, own)[1])


def _ring(
    scene: Scene,
    render: Renderer,
    num_prompts: int,
    num_views: int,
    size: int,
    settings: EvaluationConfig,
    device: torch.device | str,
) -> Tensor:
    """Images [P, V, H, W, 3] on the CPU, of V cameras around the object."""
    cameras = orbit(
        num_prompts,
        num_views,
        elevation_deg=settings.elevation_deg,
        distance=settings.distance,
        fovy_deg=settings.fovy_deg,
    )
    parts = []
    for first in range(0, num_views, settings.views_per_render):
        some = {
            name: value[:, first : first + settings.views_per_render].to(device)
            for name, value in vars(cameras).items()
        }
        parts.append(render(scene, Cameras(**some), size, size).rgb.float().cpu())
    return torch.cat(parts, dim=1)


def _write_media(
    batch: list[Prompt],
    views: Tensor,
    scene: Scene,
    render: Renderer,
    settings: EvaluationConfig,
    folder: Path,
    device: torch.device | str,
) -> tuple[list[str], list[str | None]]:
    """Paths of each prompt's strip and turntable, relative to the folder."""
    names = [safe_name(prompt.id) for prompt in batch]
    strips = [f"strips/{name}.png" for name in names]
    for path, images in zip(strips, views, strict=True):
        save_strip(folder / path, images)
    if not settings.turntable_frames:
        return strips, [None] * len(batch)
    frames = _ring(
        scene, render, len(batch), settings.turntable_frames, settings.turntable_size, settings, device
    )
    turntables = [f"turntables/{name}.mp4" for name in names]
    for path, images in zip(turntables, frames, strict=True):
        save_turntable(folder / path, images, settings.turntable_fps)
    return strips, list(turntables)


def _row(
    prompt: Prompt,
    truth: GroundTruth | None,
    scores: TruthScores | None,
    *,
    clip_similarity: float,
    recall: float,
    recall_of_truth: float | None,
    strip: str,
    turntable: str | None,
) -> PromptRow:
    exact = vars(scores) if scores is not None else {}
    sides = scores.mark_sides if scores is not None else None
    return PromptRow(
        id=prompt.id,
        text=prompt.text,
        split=prompt.split,
        kind=truth.kind if truth is not None else None,
        clip_similarity=clip_similarity,
        recall_at_1=recall,
        recall_of_truth=recall_of_truth,
        **exact,
        front_shown=float(sides[0]) if sides is not None else None,
        janus=float(any(sides[1:])) if sides is not None else None,
        strip=strip,
        turntable=turntable,
    )


def _gallery(prompts: Sequence[Prompt], texts: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Distinct texts and their columns by key, the prompts' own among them.

    CLIP's tokenizers ignore case and runs of blanks, so texts that differ in those alone are one:
    otherwise a text would tie with its twin and never be found.
    """
    columns: dict[str, tuple[str, int]] = {}
    for text in (*texts, *(prompt.text for prompt in prompts)):
        columns.setdefault(_key(text), (text, len(columns)))
    return columns


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def _check_ids(prompts: Sequence[Prompt]) -> None:
    """One id, one text: files and merged rows are found by the id."""
    texts: dict[str, str] = {}
    for prompt in prompts:
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise ValueError(
                f"prompt id {prompt.id!r} stands for {texts[prompt.id]!r} and for {prompt.text!r}: "
                "ids must be unique, rename one"
            )


def safe_name(prompt_id: str) -> str:
    """A file name from a prompt id: itself where it is harmless, else its letters and a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", prompt_id):
        return prompt_id
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=6).hexdigest()
    letters = re.sub(r"[^A-Za-z0-9]+", "-", prompt_id).strip("-")[:60]
    return f"{letters or 'prompt'}-{digest}"
