"""Scores against exact ground truth: volumetric IoU, color error, and which sides show a mark.

Independent of the corpus that the truth comes from. A scene is queried through `Scene`, for all prompts of
a batch at once, and only inside its bounding ball: outside it a scene is empty by contract. The inside of a
scene of densities begins at its `surface_densities`, and that of splats at a sum of 0.5: see `SplatSolid`.
For IoU, the points that no camera can look into are inside splats too: see `carved`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.evaluation.carving import carved
from amortized.evaluation.metrics import best_sphere_iou, color_error, iou
from amortized.scenes import albedo_of, level_of
from amortized.splats import SplatSolid, as_field
from amortized.types import AnyScene, FieldScene, GroundTruth

NUM_AZIMUTHS = 8
NUM_COLOR_POINTS = 2048
NUM_RAY_SAMPLES = 256
POINTS_PER_QUERY = 1 << 17  # over all prompts of a batch: bounds memory


@dataclass(frozen=True, kw_only=True)
class TruthScores:
    """Scores of one prompt's scene against its ground truth."""

    iou: float
    iou_any_azimuth: float  # best over 8 rotations of the truth about z: >= iou
    iou_best_sphere: float  # of the best ball, see `best_sphere_iou`
    iou_start: float | None  # of the untrained generator
    color_error: float  # mean absolute albedo difference on the true surface; NaN without a surface
    mark_sides: tuple[bool, ...] | None  # (front, left, back, right); None if the truth has no mark


@dataclass(frozen=True, kw_only=True)
class TruthScene:
    """A ground truth as a `Scene` of one prompt, to be rendered like a generated object."""

    truth: GroundTruth
    num_prompts: int = 1
    bounding_radius: float = 1.0

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance [1, N] at points [1, N, 3]."""
        return self.truth.sdf(points)

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [1, N] and albedo [1, N, 3]."""
        return self.truth.sdf(points), self.truth.color(points)

    def select(self, index: int) -> TruthScene:
        """This scene, which has one prompt. Raises IndexError unless index is 0."""
        if index != 0:
            raise IndexError(f"select: the scene has 1 prompt, got index {index}")
        return self


@torch.no_grad()
def score_truths(
    scene: AnyScene,
    truths: Sequence[GroundTruth | None],
    *,
    start_scene: AnyScene | None = None,
    resolution: int = 64,
    extent: float = 1.0,
    device: torch.device | str = "cpu",
) -> list[TruthScores | None]:
    """Score the P prompts of a scene; None for a prompt without ground truth.

    Args:
        start_scene: the same prompts before training, for `iou_start`.
        resolution: IoU is counted on the centers of resolution^3 cells that fill [-extent, extent]^3.
        device: the scene's device.
    """
    scene = as_field(scene)
    start_scene = as_field(start_scene) if start_scene is not None else None
    points = grid_points(resolution, extent).to(device)
    level = level_on(scene, points)
    start = level_on(start_scene, points) if start_scene is not None else None
    true_sdf = [truth.sdf(points) if truth is not None else None for truth in truths]
    color_errors = _color_errors(scene, truths, true_sdf, points, spacing=2 * extent / resolution)
    sides = mark_sides(scene, truths, device=device)

    scores: list[TruthScores | None] = []
    for p, truth in enumerate(truths):
        reference = true_sdf[p]
        if truth is None or reference is None:
            scores.append(None)
            continue
        unrotated = float(iou(level[p], reference))
        rotated = [
            float(iou(level[p], truth.sdf(rotate_z(points, 360.0 * k / NUM_AZIMUTHS))))
            for k in range(1, NUM_AZIMUTHS)
        ]
        scores.append(
            TruthScores(
                iou=unrotated,
                iou_any_azimuth=max(unrotated, *rotated),
                iou_best_sphere=best_sphere_iou(reference, points),
                iou_start=float(iou(start[p], reference)) if start is not None else None,
                color_error=color_errors[p],
                mark_sides=sides[p],
            )
        )
    return scores


def grid_points(resolution: int, extent: float) -> Tensor:
    """Centers [resolution^3, 3] of the cells that fill [-extent, extent]^3; x varies slowest."""
    centers = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1) * extent
    return torch.cartesian_prod(centers, centers, centers)


def rotate_z(points: Tensor, degrees: float) -> Tensor:
    """Rotate points [..., 3] about z, counterclockwise as viewed from above."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=points.dtype, device=points.device))
    x, y, z = points.unbind(-1)
    return torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y, z], dim=-1)


def level_on(scene: FieldScene, points: Tensor) -> Tensor:
    """Values [P, N] of `level_of` for all prompts at the same points [N, 3]; +1 outside the bounding ball.

    -1 where splats show a solid, although they may be a shell: see `carved`.
    """
    in_ball = (points.norm(dim=-1) <= scene.bounding_radius).nonzero().squeeze(1)
    values_at, num_prompts = level_of(scene, points.device), scene.num_prompts
    level = points.new_ones(num_prompts, len(points))
    for chunk in in_ball.split(max(1, POINTS_PER_QUERY // num_prompts)):
        level[:, chunk] = values_at(points[chunk].expand(num_prompts, -1, -1)).to(level.dtype)
    if isinstance(scene, SplatSolid):
        level[carved(scene.splats, points)] = -1.0
    return level


def surface_points(truth: GroundTruth, points: Tensor, sdf: Tensor, spacing: float, num: int) -> Tensor:
    """At most `num` points [M, 3] on the true surface, projected from grid points by Newton steps.

    Starts from an even sample of the points [N, 3] within `spacing` of the zero set of sdf [N]. Gradients
    are central differences, so the truth need not be differentiable. Points that do not converge (near a
    crease, at which the distance has no gradient) are dropped.
    """
    near = points[sdf.abs() < spacing]
    if len(near) > num:
        near = near[torch.arange(num, device=near.device) * len(near) // num]
    step = 1e-3
    offsets = step * torch.cat([torch.eye(3), -torch.eye(3)]).to(near)  # [6, 3]
    for _ in range(4):
        above, below = truth.sdf((near[:, None] + offsets).flatten(0, 1)).reshape(-1, 2, 3).unbind(1)
        gradient = (above - below) / (2 * step)
        scale = truth.sdf(near) / gradient.square().sum(-1).clamp(min=0.1)
        near = near - scale[:, None] * gradient
    return near[truth.sdf(near).abs() < 2e-3]


def _color_errors(
    scene: FieldScene,
    truths: Sequence[GroundTruth | None],
    true_sdf: Sequence[Tensor | None],
    points: Tensor,
    spacing: float,
) -> list[float]:
    """Color error per prompt: the scene's albedo queried on the true surface (NaN without a surface)."""
    surfaces = []
    for truth, reference in zip(truths, true_sdf, strict=True):
        surface = points[:0]
        if truth is not None and reference is not None:
            surface = surface_points(truth, points, reference, spacing, NUM_COLOR_POINTS)
        surfaces.append(surface[surface.norm(dim=-1) <= scene.bounding_radius])
    # A scene is queried for P prompts at once, so shorter rows are padded with the origin.
    queries = torch.nn.utils.rnn.pad_sequence(surfaces, batch_first=True)  # [P, M, 3]
    if not queries.shape[1]:
        return [float("nan")] * len(truths)
    albedo = albedo_of(scene, queries)
    return [
        float(color_error(albedo[p, : len(surface)].float(), truth.color(surface)))
        if truth is not None
        else float("nan")
        for p, (truth, surface) in enumerate(zip(truths, surfaces, strict=True))
    ]


@torch.no_grad()
def mark_sides(
    scene: FieldScene, truths: Sequence[GroundTruth | None], *, device: torch.device | str = "cpu"
) -> list[tuple[bool, ...] | None]:
    """Which sides (front, left, back, right) show the mark that only the front should have, per prompt.

    Queries the scene itself, not renders. A ray along -x through the mark's y and z stops at the first
    surface of the scene; the same ray rotated by 90, 180 and 270 degrees about z probes the other sides. A
    side shows the mark if its color is closer to the truth's color at the mark than to the truth's color at
    the same position on the back. A side without a surface shows no mark. An object with several fronts
    (the Janus problem) shows the mark on another side as well; one that never learned it shows it nowhere.

    Returns None for a prompt without a truth, or with a truth that has no mark.
    """
    marks = [truth.front_mark if truth is not None else None for truth in truths]
    if not any(marks):
        return [None] * len(marks)
    mark = torch.tensor([m or (0.0, 0.0, 0.0) for m in marks], device=device)  # [P, 3]
    # Rays run from the bounding ball to the plane x = 0, beyond which the opposite side begins.
    entry = (scene.bounding_radius**2 - mark[:, 1:].square().sum(-1)).clamp(min=0).sqrt()
    x = entry[:, None] * torch.linspace(1, 0, NUM_RAY_SAMPLES, device=device)  # [P, S]
    ray = torch.stack([x, *(mark[:, i, None].expand_as(x) for i in (1, 2))], dim=-1)  # [P, S, 3]
    ray = ray * (1 - 1e-6)  # rounding must not push points out of the ball
    rays = torch.stack([rotate_z(ray, 90.0 * k) for k in range(4)], dim=1)  # [P, 4, S, 3]

    level = level_of(scene, device)(rays.flatten(1, 2)).reshape(rays.shape[:3])
    inside = level < 0
    hit = inside.any(-1)  # [P, 4]
    after = inside.long().argmax(-1, keepdim=True)  # first sample inside
    before = (after - 1).clamp(min=0)
    level_before, level_after = level.gather(2, before), level.gather(2, after)
    # Linear interpolation of the zero crossing between the two samples.
    weight = (level_before / (level_before - level_after).clamp(min=1e-9)).clamp(0, 1)

    def at(index: Tensor) -> Tensor:
        return rays.gather(2, index[..., None].expand(-1, -1, -1, 3)).squeeze(2)  # [P, 4, 3]

    colors = albedo_of(scene, torch.lerp(at(before), at(after), weight))  # [P, 4, 3]
    sides: list[tuple[bool, ...] | None] = []
    for p, truth in enumerate(truths):
        if truth is None or marks[p] is None:
            sides.append(None)
            continue
        with_mark, without_mark = truth.color(torch.stack([mark[p], rotate_z(mark[p], 180.0)]))
        color = colors[p].float()  # [4, 3]
        nearer = (color - with_mark).norm(dim=-1) < (color - without_mark).norm(dim=-1)
        sides.append(tuple((nearer & hit[p]).tolist()))
    return sides
