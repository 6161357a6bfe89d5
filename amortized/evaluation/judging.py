"""Score the objects of prompts by a protocol and a judge, one row each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amortized.assets import AssetConfig, AssetError, check_libraries, surface
from amortized.assets.read_glb import PaintedPart
from amortized.evaluation.evaluator import EvaluatedModel
from amortized.evaluation.gallery import Gallery
from amortized.evaluation.judges import Judge, checked_scores
from amortized.evaluation.mesh_views import frame_of_parts, render_parts
from amortized.evaluation.protocols import EvaluationProtocol
from amortized.types import AnyScene, Cameras, Prompt
from amortized.wording import count

RESOLUTION = 128  # cells per side of the surface whose vertices center an object

Look = Callable[[Cameras], Tensor]  # cameras [1, V] to images [V, H, W, 3] in [0, 1] on the CPU


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The object of a prompt: how it looks, and why it is missing, if it is."""

    look: Look
    missing: str = ""


Show = Callable[[Prompt], Shown]


@dataclass(frozen=True, kw_only=True)
class JudgedRow:
    """The scores of one prompt. A score is NaN if the judge's are."""

    id: str
    text: str  # the scored one
    split: str
    scores: dict[str, float]
    views: tuple[float, ...]  # the score of each image with the own text
    missing: str = ""  # why there is no object; its images are black


@torch.no_grad()
def judge_prompts(
    prompts: Sequence[Prompt],
    *,
    protocol: EvaluationProtocol,
    judge: Judge,
    show: Show,
    gallery: Gallery | None,
    views_per_render: int,
) -> Iterator[JudgedRow]:
    """Yield the row of each prompt, as soon as it is scored.

    gallery  of the protocol's texts of all evaluated prompts, if the protocol needs one; see `gallery_of`

    Raises ValueError if the judge returns scores of another shape, or the gallery lacks a text.
    """
    cameras = protocol.cameras()
    num_views = cameras.fovy_deg.shape[1]
    for prompt in prompts:
        text = protocol.text_of(prompt.text)
        texts, column = ([text], 0) if gallery is None else (gallery.texts, gallery.column(text))
        shown = show(prompt)
        scores = []
        for first in range(0, num_views, views_per_render):
            some = {name: value[:, first : first + views_per_render] for name, value in vars(cameras).items()}
            images = shown.look(Cameras(**some))
            encoded = judge.encode(images)
            scores.append(checked_scores(judge.score(encoded, texts), judge, len(images), len(texts)))
        table = torch.cat(scores)  # [V, M]
        yield JudgedRow(
            id=prompt.id,
            text=text,
            split=prompt.split,
            scores=protocol.summarize(table, column),
            views=tuple(table[:, column].tolist()),
            missing=shown.missing,
        )


def gallery_of(protocol: EvaluationProtocol, prompts: Sequence[Prompt]) -> Gallery | None:
    """The texts among which an image must match its own: those of all evaluated prompts."""
    return Gallery(protocol.text_of(prompt.text) for prompt in prompts) if protocol.gallery else None


def cost(protocol: EvaluationProtocol, num_prompts: int, gallery: Gallery | None) -> str:
    """What scoring so many prompts takes, in words."""
    num_views = protocol.cameras().fovy_deg.shape[1]
    images, texts = num_prompts * num_views, 1 if gallery is None else len(gallery)
    return (
        f"{count(num_prompts, 'prompt')} x {count(num_views, 'view')} = {count(images, 'image')} of "
        f"{protocol.image_size} px to render and encode, {count(images * texts, 'score')} to compute"
    )


def show_fields(model: EvaluatedModel, protocol: EvaluationProtocol) -> Show:
    """Show the scenes of a generator, rendered as in training: fields by volume rendering, or splats.

    Raises AssetError if a library is missing that centers objects.
    """
    size = protocol.image_size
    if protocol.centered:  # before the first object, which a missing library would turn into a black one
        check_libraries(AssetConfig(resolution=RESOLUTION, texture=0))

    def show(prompt: Prompt) -> Shown:
        scene = model.scene_for([prompt])
        center, half = torch.zeros(3), 1.0
        if protocol.centered:
            try:
                center, half = frame_of(scene, model.device)
            except AssetError as error:
                return Shown(look=_black(size), missing=str(error))

        def look(cameras: Cameras) -> Tensor:
            moved = moved_to(cameras, center, half)
            on_device = {name: value.to(model.device) for name, value in vars(moved).items()}
            return model.render(scene, Cameras(**on_device), size, size).rgb[0].float().cpu()

        return Shown(look=look)

    return show


def show_meshes(
    parts_of: Callable[[Prompt], list[PaintedPart]],
    protocol: EvaluationProtocol,
    *,
    background: float,
    device: torch.device | str,
) -> Show:
    """Show meshes, unlit. `parts_of` raises AssetError for a prompt without one.

    background  a gray in [0, 1], if the protocol has none
    """
    size = protocol.image_size
    gray = background if protocol.background is None else protocol.background

    def show(prompt: Prompt) -> Shown:
        try:
            parts = parts_of(prompt)
        except AssetError as error:
            return Shown(look=_black(size), missing=str(error))
        center, half = frame_of_parts(parts) if protocol.centered else (torch.zeros(3), 1.0)

        def look(cameras: Cameras) -> Tensor:
            moved = moved_to(cameras, center, half)
            return render_parts(parts, moved, size, background=gray, device=device)

        return Shown(look=look)

    return show


def frame_of(scene: AnyScene, device: torch.device | str) -> tuple[Tensor, float]:
    """T3Bench's center [3] and half size of an object: the mean vertex, and the largest coordinate from it.

    The mean depends on how dense the vertices are: here they are those of marching cubes, with 128 cells per
    side. Raises AssetError if there is no surface.
    """
    vertices = torch.from_numpy(surface(scene, resolution=RESOLUTION, device=device)[0].vertices)
    center = vertices.mean(0)
    return center.float(), float((vertices - center).abs().max())


def moved_to(cameras: Cameras, center: Tensor, half: float) -> Cameras:
    """The cameras that see an object as `cameras` see it moved from `center` and divided by `half`."""
    c2w = cameras.c2w.clone()
    c2w[..., :3, 3] = center + half * c2w[..., :3, 3]
    return replace(cameras, c2w=c2w)


def _black(size: int) -> Look:
    return lambda cameras: torch.zeros(cameras.fovy_deg.shape[1], size, size, 3)
