"""Protocols: from which cameras an object is shown, and how the scores of its images become one number.

A protocol is published or ours, under its own name, and does not depend on the judge. A number of one
protocol and judge does not compare with that of another: fewer views alone change a maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amortized.cameras import cameras_at
from amortized.evaluation.icosphere import averaging, icosphere
from amortized.types import Cameras

RING = "ring"  # the evaluation of `evaluator.evaluate`, which also knows the ground truth
ZOOMS = (60.0, 45.0, 36.0, 30.0, 24.0)  # deg, T3Bench's vertical fields of view
T3BENCH_DISTANCE = 2.2


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """Cameras, and a summary of the scores of their images.

    `summarize` takes the scores [V, M] of an object's V images with M texts, and the column of the prompt's
    text. M is 1, unless there is a `gallery`: then it is the number of distinct texts of all evaluated
    prompts.
    """

    name: str
    about: str  # in a few words
    cameras: Callable[[], Cameras]  # [1, V]
    summarize: Callable[[Tensor, int], dict[str, float]]
    judge: str  # the default, as `load_judge` takes it
    image_size: int = 512  # px
    background: float | None = None  # a gray in [0, 1]; None: the learned one, or the run's gray
    centered: bool = False  # the object is moved and scaled to fill [-1, 1]; see `judging.frame_of`
    gallery: bool = False
    text_of: Callable[[str], str] = str  # the text that is scored, of a prompt's


# ---- ScaleDreamer ---------------------------------------------------------------------------------


def _turn(distance: float, fovy_deg: float) -> Callable[[], Cameras]:
    def cameras() -> Cameras:
        azimuth = torch.linspace(0, 360, 120)[None]  # as published: the last view is the first again

        def constant(value: float) -> Tensor:
            return torch.full_like(azimuth, value)

        return cameras_at(
            azimuth_deg=azimuth,
            elevation_deg=constant(15.0),
            distance=constant(distance),
            fovy_deg=constant(fovy_deg),
        )

    return cameras


def scaledreamer_text(prompt: str) -> str:
    """The text that ScaleDreamer's script reads from the name of a prompt's folder of images."""
    return prompt.replace(",", "").replace(".", "").replace("_", " ")


def clip_scores(scores: Tensor, column: int) -> dict[str, float]:
    """Mean similarity with the own text, and the share of images whose best text among all is their own.

    The best text is that of the largest softmax of 100 times the scores, the first of equal ones, as
    published. All values are NaN if a score is not finite.
    """
    if not scores.isfinite().all():
        return {"similarity": math.nan, "recall_at_1": math.nan}
    best = (100 * scores).softmax(dim=-1).argmax(dim=-1)
    own = (best == column).double()
    return {"similarity": float(scores[:, column].mean()), "recall_at_1": float(own.mean())}


def _scaledreamer(name: str, about: str, distance: float, fovy_deg: float) -> EvaluationProtocol:
    return EvaluationProtocol(
        name=name,
        about=f"120 views around the object, CLIP similarity and R@1 among the evaluated prompts: {about}",
        cameras=_turn(distance, fovy_deg),
        summarize=clip_scores,
        judge="clip-bilinear",
        gallery=True,
        text_of=scaledreamer_text,
    )


# ---- T3Bench --------------------------------------------------------------------------------------


def _sphere(subdivisions: int, fovys_deg: tuple[float, ...]) -> Callable[[], Cameras]:
    def cameras() -> Cameras:
        eyes = np.repeat(icosphere(subdivisions)[0], len(fovys_deg), axis=0)
        return look_from(eyes, np.tile(fovys_deg, len(eyes) // len(fovys_deg)))

    return cameras


def look_from(directions: np.ndarray, fovy_deg: np.ndarray) -> Cameras:
    """Cameras [1, V] at 2.2 in unit directions [V, 3], with z up, or y up straight above and below."""
    z, y = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    up = np.where(np.abs(directions @ z)[:, None] >= 0.99, y, z)
    right = np.cross(up, directions)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    c2w = np.tile(np.eye(4), (len(directions), 1, 1))
    c2w[:, :3, 0], c2w[:, :3, 1], c2w[:, :3, 2] = right, np.cross(directions, right), directions
    c2w[:, :3, 3] = directions * T3BENCH_DISTANCE
    azimuth = np.degrees(np.arctan2(directions[:, 1], directions[:, 0]))
    elevation = np.degrees(np.arcsin(directions[:, 2].clip(-1, 1)))
    values = (c2w, fovy_deg, azimuth, elevation, np.full(len(directions), T3BENCH_DISTANCE))
    names = ("c2w", "fovy_deg", "azimuth_deg", "elevation_deg", "distance")
    rows = {name: torch.from_numpy(value).float()[None] for name, value in zip(names, values, strict=True)}
    return Cameras(**rows)


def region_maximum(scores: Tensor, subdivisions: int, rounds: int = 3) -> float:
    """T3Bench's quality, 20 s + 50, of scores [V * Z], in the order of the cameras: Z zooms of V vertices.

    The largest score of each vertex is averaged with its neighbors', `rounds` times; s is the largest mean. A
    score that is NaN makes it NaN.
    """
    vertices, faces = icosphere(subdivisions)
    best = scores.double().reshape(len(vertices), -1).amax(dim=1)
    means = torch.from_numpy(np.linalg.matrix_power(averaging(vertices, faces), rounds)) @ best
    return float(20 * means.max() + 50)


def _t3bench(name: str, about: str, subdivisions: int, fovys_deg: tuple[float, ...]) -> EvaluationProtocol:
    def summarize(scores: Tensor, column: int) -> dict[str, float]:
        return {"quality": region_maximum(scores[:, column], subdivisions)}

    return EvaluationProtocol(
        name=name,
        about=about,
        cameras=_sphere(subdivisions, fovys_deg),
        summarize=summarize,
        judge="image-reward",
        background=0.0,
        centered=True,
    )


_ALL = (
    _scaledreamer("scaledreamer-clip", "at 1.5, 70 deg", 1.5, 70.0),
    _scaledreamer("scaledreamer-clip-df415", "at 1.2, 70 deg, as published for DF415", 1.2, 70.0),
    _scaledreamer("scaledreamer-clip-mvdream", "at 3.0, 40 deg, as published for MVDream", 3.0, 40.0),
    _t3bench("t3bench-quality", "162 cameras with 5 zooms, T3Bench's quality", 2, ZOOMS),
    _t3bench("t3bench-lite", "42 cameras at 45 deg; does not compare with T3Bench's table", 1, (45.0,)),
)
PROTOCOLS: Mapping[str, EvaluationProtocol] = {protocol.name: protocol for protocol in _ALL}
