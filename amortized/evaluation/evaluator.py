"""Render every prompt of a corpus from fixed views, score it, and save image strips and turntables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.config import PathText, check
from amortized.evaluation.folder import writing
from amortized.evaluation.gallery import Gallery
from amortized.evaluation.metrics import text_scores
from amortized.evaluation.objects import write_object
from amortized.evaluation.results import PromptRow
from amortized.evaluation.truth import TruthScene, TruthScores, score_truths
from amortized.media import save_strip, save_video
from amortized.names import slug
from amortized.types import AnyScene, Cameras, GroundTruth, Prompt, Render, SplatScene

SceneFor = Callable[[list[Prompt]], AnyScene]  # P prompts to a scene of P objects


class Renderer(Protocol):
    """Renders all cameras [P, V] of a scene at one image size, without gradients."""

    def __call__(self, scene: AnyScene, cameras: Cameras, height: int, width: int) -> Render: ...


class Scorer(Protocol):
    """A text-image model that embeds both into the same space, as unit vectors."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings [N, D] of images [N, H, W, 3] in [0, 1]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [M, D] of M texts."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """The generator under test and how to render it."""

    scene_for: SceneFor  # the trained generator
    start_scene_for: SceneFor | None = None  # the untrained generator, as an IoU baseline
    render: Renderer  # closes over background and sampling settings
    device: torch.device | str = "cpu"  # the generator's; cameras and query points are created on it


MAX_PIXELS = 2**32  # of a batch: with their RGB in float32, 48 GiB


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Views and metrics of an evaluation; scores are comparable only under equal settings."""

    clip: PathText = "checkpoints/clip"  # a folder in open_clip's format, or "ViT-L-14/openai"
    allow_network: bool = False  # download such a pair if it is not cached
    # Texts that recall@1 is measured against: the whole corpus, or the evaluated prompts only. The
    # corpus's distractors are added to both.
    gallery: Literal["corpus", "prompts"] = "corpus"
    views: int = 8  # scored views, evenly spaced in azimuth, the first at the front
    elevation_deg: float = 20.0
    distance: float = 2.6
    fovy_deg: float = 40.0
    image_size: int = 64  # px, of the scored views
    background: float = 0.5  # gray level behind the object, in [0, 1]
    show_environment: bool = False  # show the scene's learned background instead, if it has one
    turntable_frames: int = 24  # 0 writes no turntables
    turntable_size: int = 160  # px; the report shows them at this size
    turntable_fps: float = 12.0
    objects: int = 64  # the first so many prompts have an object that the report shows in 3D; 0: none
    show_truth: bool = True  # a strip of the true object beside the result, if the corpus knows it
    grid: int = 64  # cells per side for the volumetric IoU
    prompts_per_batch: int = 4
    views_per_render: int = 8  # views rendered at once, to bound memory
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        check(self, "image_size", "turntable_size", at_least=1, limit=4096)
        check(self, "grid", at_least=1, limit=512)
        check(self, "views", "prompts_per_batch", "views_per_render", at_least=1, limit=4096)
        check(self, "turntable_frames", "objects", at_least=0, limit=10_000)
        check(self, "distance", "turntable_fps", above=0, limit=1000)
        check(self, "fovy_deg", above=0, below=180)
        check(self, "elevation_deg", at_least=-90, at_most=90)
        check(self, "background", at_least=0, at_most=1)
        for size, frames in (("image_size", "views"), ("turntable_size", "turntable_frames")):
            pixels = self.prompts_per_batch * getattr(self, frames) * getattr(self, size) ** 2
            if pixels > MAX_PIXELS:
                raise ValueError(
                    f"{size}, {frames} and prompts_per_batch make {pixels:.2g} pixels in one batch, and at "
                    f"most {MAX_PIXELS:,} are allowed: lower one of them"
                )


@torch.no_grad()
def evaluate(
    model: EvaluatedModel,
    prompts: Sequence[Prompt],
    *,
    gallery: Gallery,
    truth_for: Callable[[Prompt], GroundTruth | None],
    scorer: Scorer,
    config: EvaluationConfig,
    folder: str | Path,
    names: Mapping[str, str] | None = None,
    with_object: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[PromptRow]:
    """Score the prompts, one row each in the given order; write their pictures into `folder`.

    The pictures are in `strips/`, `truth/` and `turntables/`, named by prompt. The rows of several processes,
    each with a share of the prompts, go through `merge_rows`; call `summarize` once, on all of them.

    Args:
        gallery: all texts of the corpus and its distractors, even if `prompts` is only a part of the
            corpus, since recall is comparable only between equal galleries.
        truth_for: the ground truth of a prompt, or None if there is none.
        folder: receives the media; the rows hold paths relative to it.
        names: the file name of each prompt id, from `file_names` of all processes' prompts; None: there is
            one process.
        with_object: ids of the prompts to write a GLB of, or splats; an object without a surface has none.
        progress: called with (prompts done, prompts in total) after each batch.

    Raises:
        ValueError: one id names two texts, the gallery lacks the text of a prompt, or the disk is full.
    """
    _check_ids(prompts)
    names = file_names(prompts) if names is None else names
    columns = [gallery.column(prompt.text) for prompt in prompts]
    gallery_embeddings = scorer.encode_texts(gallery.texts)  # [G, D]
    rows: list[PromptRow] = []
    for start in range(0, len(prompts), config.prompts_per_batch):
        batch = list(prompts[start : start + config.prompts_per_batch])
        column = torch.tensor(columns[start : start + len(batch)])  # [P]
        scene = model.scene_for(batch)
        views = _render_ring(scene, model, len(batch), config.views, config.image_size, config)
        embeddings = scorer.encode_images(views.flatten(0, 1))  # [P * V, D]
        similarity, recall = text_scores(embeddings, gallery_embeddings, column)

        # The true object, rendered and scored the same way, bounds the recall that a perfect generator
        # could reach: it separates failures of CLIP from failures of the generator.
        truths = [truth_for(prompt) for prompt in batch]
        true_views = [_views_of_truth(truth, model, config) for truth in truths]
        recall_of_truth = [
            None
            if images is None
            else float(text_scores(scorer.encode_images(images), gallery_embeddings, column[p : p + 1])[1])
            for p, images in enumerate(true_views)
        ]
        scores: Sequence[TruthScores | None] = [None] * len(batch)
        if any(truth is not None for truth in truths):
            start_scene = model.start_scene_for(batch) if model.start_scene_for is not None else None
            scores = score_truths(
                scene, truths, start_scene=start_scene, resolution=config.grid, device=model.device
            )

        turntables: Sequence[Tensor | None] = [None] * len(batch)
        if config.turntable_frames:
            frames, size = config.turntable_frames, config.turntable_size
            turntables = list(_render_ring(scene, model, len(batch), frames, size, config))
        for p, prompt in enumerate(batch):
            name, true_strip = names[prompt.id], true_views[p] if config.show_truth else None
            media = _write_media(Path(folder), name, views[p], true_strip, turntables[p], config)
            if prompt.id in with_object:
                media |= write_object(scene.select(p), Path(folder), name, prompt.text, model.device)
            rows.append(
                _row(
                    prompt,
                    truths[p],
                    scores[p],
                    clip_similarity=float(similarity[p]),
                    recall=float(recall[p]),
                    recall_of_truth=recall_of_truth[p],
                    splats=isinstance(scene, SplatScene),
                    media={"slug": name, **media},
                )
            )
        if progress is not None:
            progress(len(rows), len(prompts))
    return rows


def _views_of_truth(
    truth: GroundTruth | None, model: EvaluatedModel, config: EvaluationConfig
) -> Tensor | None:
    """The scored views [V, H, W, 3] of the true object, rendered like a generated one; None if unknown."""
    if truth is None:
        return None
    return _render_ring(TruthScene(truth=truth), model, 1, config.views, config.image_size, config)[0]


def _render_ring(
    scene: AnyScene,
    model: EvaluatedModel,
    num_prompts: int,
    num_views: int,
    size: int,
    config: EvaluationConfig,
) -> Tensor:
    """Images [P, V, size, size, 3] on the CPU, from V cameras evenly spaced around the object."""
    cameras = orbit(
        num_prompts,
        num_views,
        elevation_deg=config.elevation_deg,
        distance=config.distance,
        fovy_deg=config.fovy_deg,
    )
    images = []
    for first in range(0, num_views, config.views_per_render):
        chunk = {
            name: value[:, first : first + config.views_per_render].to(model.device)
            for name, value in vars(cameras).items()
        }
        images.append(model.render(scene, Cameras(**chunk), size, size).rgb.float().cpu())
    return torch.cat(images, dim=1)


def _write_media(
    folder: Path,
    name: str,
    views: Tensor,
    true_views: Tensor | None,
    turntable: Tensor | None,
    config: EvaluationConfig,
) -> dict[str, str]:
    """Write the pictures of one prompt; return their paths relative to the folder."""
    media = {"strip": f"strips/{name}.png"}
    with writing(folder):
        save_strip(folder / media["strip"], views)
        if true_views is not None:
            media["truth_strip"] = f"truth/{name}.png"
            save_strip(folder / media["truth_strip"], true_views)
        if turntable is not None:
            media["turntable"] = f"turntables/{name}.mp4"
            save_video(folder / media["turntable"], turntable, config.turntable_fps)
    return media


def _row(
    prompt: Prompt,
    truth: GroundTruth | None,
    scores: TruthScores | None,
    *,
    clip_similarity: float,
    recall: float,
    recall_of_truth: float | None,
    splats: bool,
    media: Mapping[str, Any],
) -> PromptRow:
    """Collect the scores of one prompt."""
    truth_scores = vars(scores) if scores is not None else {}
    sides = scores.mark_sides if scores is not None else None
    return PromptRow(
        id=prompt.id,
        text=prompt.text,
        split=prompt.split,
        kind=truth.kind if truth is not None else None,
        clip_similarity=clip_similarity,
        recall_at_1=recall,
        recall_of_truth=recall_of_truth,
        splats=splats,
        **truth_scores,
        front_shown=float(sides[0]) if sides is not None else None,
        janus=float(any(sides[1:])) if sides is not None else None,
        **media,
    )


def _check_ids(prompts: Sequence[Prompt]) -> None:
    """Raise ValueError if one id names two texts: media and merged rows are looked up by id."""
    texts: dict[str, str] = {}
    for prompt in prompts:
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise ValueError(
                f"prompt id {prompt.id!r} names both {texts[prompt.id]!r} and {prompt.text!r}: "
                "ids must be unique, rename one"
            )


def file_names(prompts: Sequence[Prompt]) -> dict[str, str]:
    """A readable file name for each prompt id, from its text; no two are equal."""
    names: dict[str, str] = {}
    for prompt in prompts:
        names.setdefault(prompt.id, slug(prompt.text))
    taken: set[str] = set()
    for key, name in names.items():  # 8 digits may collide among millions, and one text may have two ids
        while name in taken:
            name = slug(f"{name} {key}")
        taken.add(name)
        names[key] = name
    return names
