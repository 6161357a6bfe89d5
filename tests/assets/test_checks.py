"""The report on a mesh agrees with closed forms, and with trimesh on any set of faces."""

from __future__ import annotations

import json

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from amortized.assets import AssetError, Mesh, check_mesh
from tests.assets.meshes import HALF, box, icosphere, joined, moved, torus, with_faces

SPHERE = icosphere(2)
FINE = icosphere(5)
CAVITY = moved(SPHERE, scale=0.5)
CAVITY = with_faces(CAVITY, CAVITY.faces[:, ::-1])


@pytest.mark.parametrize(
    ("mesh", "volume", "euler_number", "bodies", "tolerance"),
    [
        (box(), 8 * HALF.prod(), 2, 1, 1e-12),
        (moved(box(), (1e4, -1e4, 1e4)), 8 * HALF.prod(), 2, 1, 1e-9),
        (FINE, 4 / 3 * np.pi * 0.8**3, 2, 1, 2e-3),
        (torus(200, 100), 2 * np.pi**2 * 0.5 * 0.2**2, 0, 1, 2e-3),
        (joined(FINE, moved(torus(200, 100), (2, 0, 0))), 4 / 3 * np.pi * 0.8**3 + 0.3948, 2, 2, 2e-3),
    ],
    ids=["box", "distant box", "sphere", "torus", "two bodies"],
)
def test_closed_forms(mesh: Mesh, volume: float, euler_number: int, bodies: int, tolerance: float) -> None:
    report = check_mesh(mesh)
    assert report["watertight"] and report["winding_consistent"] and report["finite"]
    assert report["degenerate_faces"] == report["open_edges"] == report["shared_edges"] == 0
    assert report["volume"] == pytest.approx(volume, rel=tolerance)
    assert (report["euler_number"], report["bodies"]) == (euler_number, bodies)
    inward = check_mesh(with_faces(mesh, mesh.faces[:, ::-1]))
    assert inward["volume"] == pytest.approx(-report["volume"])


def test_cavity_counts_as_body_and_reduces_the_volume() -> None:
    whole, hollow = check_mesh(SPHERE), check_mesh(joined(SPHERE, CAVITY))
    assert hollow["bodies"] == 2 and hollow["watertight"]
    assert hollow["volume"] == pytest.approx(whole["volume"] * (1 - 0.5**3))


@settings(max_examples=40, deadline=None)
@given(
    removed=st.sets(st.integers(0, 319), max_size=60),
    flipped=st.sets(st.integers(0, 319), max_size=5),
    repeated=st.sets(st.integers(0, 319), max_size=3),
)
def test_agrees_with_trimesh(removed: set[int], flipped: set[int], repeated: set[int]) -> None:
    faces = SPHERE.faces.copy()
    faces[list(flipped)] = faces[list(flipped)][:, ::-1]
    faces = np.vstack([np.delete(faces, list(removed), axis=0), SPHERE.faces[list(repeated)]])
    report = check_mesh(with_faces(SPHERE, faces))
    other = trimesh.Trimesh(SPHERE.vertices, faces, process=False)
    assert report["watertight"] == other.is_watertight
    if report["watertight"]:
        assert report["winding_consistent"] == other.is_winding_consistent
    if report["watertight"] and report["winding_consistent"]:
        assert report["volume"] == pytest.approx(other.volume)
    assert report["area"] == pytest.approx(other.area)
    assert report["euler_number"] == other.euler_number
    if not repeated:  # trimesh counts other bodies where more than two faces share an edge
        assert report["bodies"] == other.body_count


def test_distances_and_degenerate_faces() -> None:
    report = check_mesh(SPHERE, bounding_radius=0.9)
    assert report["max_radius"] == pytest.approx(0.8) and report["inside_ball"] is True
    assert check_mesh(SPHERE, bounding_radius=0.7)["inside_ball"] is False
    assert check_mesh(SPHERE)["inside_ball"] is None
    flat = moved(box())
    flat.vertices[flat.faces[0, 0]] = flat.vertices[flat.faces[0, 1]]
    assert check_mesh(flat)["degenerate_faces"] >= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_report_is_json_whatever_the_positions(value: float) -> None:
    mesh = moved(SPHERE)
    mesh.vertices[5, 1] = value
    report = json.loads(json.dumps(check_mesh(mesh, 0.9), allow_nan=False))
    assert report["finite"] is False and report["volume"] is None and report["inside_ball"] is None
    assert report["watertight"] is True


def test_a_mesh_without_faces_is_not_closed() -> None:
    report = check_mesh(with_faces(SPHERE, np.empty((0, 3), np.int64)))
    assert report["watertight"] is False and report["bodies"] == 0 and report["faces"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"faces": np.array([[0, 1, 8]])},
        {"faces": np.array([[0, 1, -1]])},
        {"faces": np.array([[0, 1]])},
        {"faces": np.array([[0.0, 1, 2]])},
        {"vertices": np.zeros((8, 2))},
        {"normals": np.zeros((7, 3))},
        {"colors": np.zeros((8, 4))},
    ],
    ids=["index", "negative", "edges", "floats", "plane", "normals", "rgba"],
)
def test_arrays_that_are_not_a_mesh_raise_one_sentence(damage: dict[str, np.ndarray]) -> None:
    mesh = box()
    fields = {name: getattr(mesh, name) for name in ("vertices", "faces", "normals", "colors")}
    with pytest.raises(AssetError) as error:
        check_mesh(Mesh(**fields | damage))
    assert "\n" not in str(error.value) and str(error.value).startswith("mesh ")
