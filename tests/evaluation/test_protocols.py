"""Protocols against hand-written loops over published rules, and the symmetries that they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from amortized.cameras import camera_rays
from amortized.evaluation.icosphere import averaging, icosphere
from amortized.evaluation.protocols import PROTOCOLS, ZOOMS, region_maximum, scaledreamer_text
from amortized.types import Cameras

T3BENCH = ("t3bench-quality", "t3bench-lite")
SCALEDREAMER = ("scaledreamer-clip", "scaledreamer-clip-df415", "scaledreamer-clip-mvdream")
SPHERES = {"t3bench-quality": (2, ZOOMS), "t3bench-lite": (1, (45.0,))}


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- cameras --------------------------------------------------------------------------------------


@pytest.mark.parametrize("subdivisions", [0, 1, 2, 3])
def test_the_icosphere_is_that_of_trimesh(subdivisions: int) -> None:
    vertices, faces = icosphere(subdivisions)
    theirs = trimesh.creation.icosphere(subdivisions=subdivisions)
    apart = np.linalg.norm(vertices[:, None] - theirs.vertices, axis=-1)
    match = apart.argmin(1)
    assert len(vertices) == len(theirs.vertices) == len(set(match.tolist()))
    assert apart.min(1).max() < 1e-12
    ours = {frozenset(match[face].tolist()) for face in faces}
    assert ours == {frozenset(face) for face in theirs.faces.tolist()}


@pytest.mark.parametrize("name", T3BENCH)
def test_t3bench_looks_at_the_origin_from_each_vertex_with_each_zoom(name: str) -> None:
    subdivisions, zooms = SPHERES[name]
    eyes = trimesh.creation.icosphere(subdivisions=subdivisions, radius=2.2).vertices
    cameras = PROTOCOLS[name].cameras()
    assert cameras.fovy_deg.shape == (1, len(eyes) * len(zooms))
    found = {
        (*np.round(c2w[:3, 3].numpy(), 4).tolist(), round(float(fovy), 3))
        for c2w, fovy in zip(cameras.c2w[0], cameras.fovy_deg[0], strict=True)
    }
    rounded = np.round(eyes.astype(np.float32), 4) + 0.0
    expected = {(*map(float, eye), fovy) for eye in rounded for fovy in zooms}
    assert len(found) == len(expected)
    for c2w in cameras.c2w[0].double().numpy():
        rotation, eye = c2w[:3, :3], c2w[:3, 3]
        assert np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-6) and np.linalg.det(rotation) > 0
        assert np.allclose(eye, 2.2 * rotation[:, 2], atol=1e-6)  # backward: the origin is in the middle
        up = (0, 1, 0) if abs(rotation[2, 2]) >= 0.99 else (0, 0, 1)
        assert rotation[:, 1] @ up > 0 and abs(rotation[:, 0] @ up) < 1e-6


@pytest.mark.parametrize(
    ("name", "distance", "fovy_deg"), zip(SCALEDREAMER, (1.5, 1.2, 3.0), (70, 70, 40), strict=True)
)
def test_scaledreamer_turns_once_and_shows_the_first_view_twice(name, distance, fovy_deg) -> None:
    protocol = PROTOCOLS[name]
    cameras = protocol.cameras()
    assert protocol.image_size == 512 and cameras.c2w.shape == (1, 120, 4, 4)
    for number, c2w in enumerate(cameras.c2w[0].double()):
        azimuth, elevation = math.radians(number * 360 / 119), math.radians(15)
        eye = [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth)]
        eye = distance * torch.tensor([*eye, math.sin(elevation)], dtype=torch.float64)
        assert torch.allclose(c2w[:3, 3], eye, atol=1e-5)
    assert torch.allclose(cameras.c2w[:, 0], cameras.c2w[:, -1], atol=1e-5)
    assert (cameras.fovy_deg == fovy_deg).all() and (cameras.elevation_deg == 15).all()


def test_all_rays_of_the_narrowest_zoom_meet_the_middle() -> None:
    cameras = PROTOCOLS["t3bench-quality"].cameras()
    last = Cameras(**{key: value[:, 4:5] for key, value in vars(cameras).items()})
    rays = camera_rays(last, 3, 3)
    nearest = torch.linalg.cross(rays.origins[0], rays.directions[0]).norm(dim=-1)
    corner = 2.2 * math.tan(math.radians(12)) * 2 / 3 * math.sqrt(2)  # the centers of the outer pixels
    assert nearest[4] < 1e-5 and nearest.max() <= corner + 1e-5


# ---- aggregation ----------------------------------------------------------------------------------


def quality_by_loops(scores: list[float], subdivisions: int, zooms: int) -> float:
    """T3Bench's rule: the best zoom of a vertex, three rounds of means with its neighbors, the best mean."""
    _, faces = icosphere(subdivisions)
    count = len(scores) // zooms
    neighbors: list[set[int]] = [{vertex} for vertex in range(count)]
    for face in faces.tolist():
        for vertex in face:
            neighbors[vertex].update(face)
    values = [max(scores[v * zooms : (v + 1) * zooms]) for v in range(count)]
    for _ in range(3):
        values = [sum(values[n] for n in near) / len(near) for near in neighbors]
    return max(values) * 20 + 50


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", T3BENCH)
def test_quality_equals_loops(name: str, seed: int) -> None:
    subdivisions, zooms = SPHERES[name]
    scores = random_scores(len(icosphere(subdivisions)[0]) * len(zooms), seed=seed)
    expected = quality_by_loops(scores.tolist(), subdivisions, len(zooms))
    assert PROTOCOLS[name].summarize(scores[:, None], 0)["quality"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", T3BENCH)
@pytest.mark.parametrize("constant", [-2.25, 0.0, 1.5])
def test_a_constant_judge_gives_its_constant(name: str, constant: float) -> None:
    views = PROTOCOLS[name].cameras().fovy_deg.shape[1]
    scores = torch.full((views, 1), constant)
    assert PROTOCOLS[name].summarize(scores, 0)["quality"] == pytest.approx(20 * constant + 50, abs=1e-12)


def symmetries() -> list[np.ndarray]:
    """Rotations that map the icosahedron to itself: about a vertex, an edge, a face, and products of them."""
    vertices, faces = icosphere(0)
    axes = [(vertices[0], 5), (vertices[faces[0, :2]].sum(0), 2), (vertices[faces[0]].sum(0), 3)]
    turns = [
        trimesh.transformations.rotation_matrix(2 * math.pi / order, axis)[:3, :3] for axis, order in axes
    ]
    return [*turns, turns[0] @ turns[1], turns[1] @ turns[2] @ turns[0]]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("name", T3BENCH)
def test_quality_does_not_change_with_the_symmetries_of_the_sphere(name: str, number: int) -> None:
    subdivisions, zooms = SPHERES[name]
    vertices, _ = icosphere(subdivisions)
    apart = np.linalg.norm((vertices @ symmetries()[number].T)[:, None] - vertices, axis=-1)
    moved = apart.argmin(1)
    assert apart.min(1).max() < 1e-9 and (moved != np.arange(len(vertices))).any()
    scores = random_scores(len(vertices), len(zooms))
    turned = torch.empty_like(scores)
    turned[moved] = scores
    quality = region_maximum(scores.flatten(), subdivisions)
    assert region_maximum(turned.flatten(), subdivisions) == pytest.approx(quality, abs=1e-12)


def test_one_good_view_counts_little_and_a_good_region_fully() -> None:
    vertices, faces = icosphere(2)
    region = torch.from_numpy(np.linalg.matrix_power(averaging(vertices, faces), 3)[7])
    assert int((region > 0).sum()) in range(31, 38) and float(region.max()) < 0.1
    single, whole = torch.zeros(162, 5), torch.zeros(162, 5)
    single[7, 2] = 1.0
    whole[region > 0, 2] = 1.0
    assert region_maximum(single.flatten(), 2) < 52
    assert region_maximum(whole.flatten(), 2) == pytest.approx(70)


def test_a_score_that_is_not_a_number_is_not_hidden() -> None:
    scores = torch.zeros(810, 1)
    scores[3] = math.nan
    assert math.isnan(PROTOCOLS["t3bench-quality"].summarize(scores, 0)["quality"])
    table = torch.zeros(120, 3)
    table[5, 2] = math.nan
    assert all(math.isnan(v) for v in PROTOCOLS["scaledreamer-clip"].summarize(table, 0).values())


@pytest.mark.parametrize("seed", range(4))
def test_similarity_and_recall_equal_loops(seed: int) -> None:
    scores = 0.2 + 0.05 * random_scores(120, 7, seed=seed)
    scores[:, 3] += 0.05
    for column in range(7):
        similarity, hits = 0.0, 0
        for row in scores.tolist():
            similarity += row[column] / 120
            weights = [math.exp(100 * value) for value in row]
            hits += weights.index(max(weights)) == column
        found = PROTOCOLS["scaledreamer-clip"].summarize(scores, column)
        assert found["similarity"] == pytest.approx(similarity, abs=1e-12)
        assert found["recall_at_1"] == pytest.approx(hits / 120, abs=1e-12)


def test_a_judge_that_sees_nothing_has_the_recall_of_chance() -> None:
    summarize = PROTOCOLS["scaledreamer-clip"].summarize
    table = torch.full((120, 5), 0.25)
    recall = [summarize(table, column)["recall_at_1"] for column in range(5)]
    assert sum(recall) / 5 == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a pig", "a pig"),
        ("a pig, in a hat.", "a pig in a hat"),
        ("snake_case no. 5", "snake case no 5"),
        ("A DSLR photo of a cat's toy", "A DSLR photo of a cat's toy"),
    ],
)
def test_texts_are_those_of_the_published_folders(prompt: str, text: str) -> None:
    folder = prompt.replace(",", "").replace(".", "").replace(" ", "_")
    assert scaledreamer_text(prompt) == text == folder.replace("_", " ")
