"""Splat files: exact bytes, equal renders of turned axes, and one sentence for files that do not fit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortized.splats import (
    NAMES,
    from_points,
    read_points_ply,
    read_splat_file,
    read_splat_ply,
    rotation_matrices,
    scene_of,
    write_points_ply,
    write_splat_file,
    write_splat_ply,
)
from amortized.types import SplatScene
from tests.splats import made


def scene(count: int = 50, seed: int = 0) -> SplatScene:
    return scene_of({name: value.float() for name, value in made.cloud(count, seed=seed).items()}, 1.0)


def covariances(scene: SplatScene) -> torch.Tensor:
    axes = rotation_matrices(scene.quaternions[0].double()) * scene.log_scales[0].double().exp()[:, None]
    return axes @ axes.mT


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of quaternions [4] and [N, 4]."""
    w = a[0] * b[:, :1] - (a[1:] * b[:, 1:]).sum(1, keepdim=True)
    vector = a[0] * b[:, 1:] + b[:, :1] * a[1:] + torch.linalg.cross(a[1:].expand_as(b[:, 1:]), b[:, 1:])
    return torch.cat([w, vector], dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_a_ply_that_is_read_and_written_has_the_same_bytes(seed: int, tmp_path: Path):
    write_splat_ply(tmp_path / "a.ply", scene(300, seed))
    write_splat_ply(tmp_path / "b.ply", read_splat_ply(tmp_path / "a.ply"))
    data = (tmp_path / "a.ply").read_bytes()
    assert data == (tmp_path / "b.ply").read_bytes() and len(data) < 300 * 68 + 600


def test_a_ply_has_the_published_properties_in_order(tmp_path: Path):
    original = scene(3)
    write_splat_ply(tmp_path / "a.ply", original)
    header, data = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    order = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    assert lines[3:] == [f"property float {name}" for name in order.split()]
    row = struct.unpack("<17f", data[68:136])
    x, y, z = original.means[0, 1].tolist()
    assert row[:6] == (y, z, x, 0, 0, 0) and row[9] == original.logits[0, 1].item()
    assert row[6:9] == tuple(original.colors[0, 1].tolist())
    assert np.linalg.norm(row[13:]) == pytest.approx(1)


def test_reading_gives_the_scene_that_was_written(tmp_path: Path):
    original = scene()
    write_splat_ply(tmp_path / "a.ply", original)
    read = read_splat_ply(tmp_path / "a.ply", bounding_radius=1.0)
    for name in ("means", "log_scales", "logits", "colors"):
        assert torch.equal(getattr(read, name), getattr(original, name))
    torch.testing.assert_close(covariances(read), covariances(original), rtol=1e-5, atol=1e-9)
    assert read.bounding_radius == 1.0 and read_splat_ply(tmp_path / "a.ply").bounding_radius < 0.51


def test_the_file_s_splats_are_ours_turned_to_y_up(tmp_path: Path):
    """Positions (x, y, z) become (y, z, x), and quaternions are multiplied by (.5, -.5, -.5, -.5)."""
    original = scene()
    write_splat_ply(tmp_path / "a.ply", original)
    data = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1]
    table = torch.from_numpy(np.frombuffer(data, "<f4").reshape(-1, 17).copy()).double()
    in_file = torch.nn.functional.normalize(original.quaternions[0].double(), dim=-1)
    in_file = product(torch.tensor([0.5, -0.5, -0.5, -0.5]).double(), in_file)
    axes = rotation_matrices(in_file) * original.log_scales[0].double().exp()[:, None]
    written = rotation_matrices(table[:, 13:]) * table[:, 10:13].exp()[:, None]
    torch.testing.assert_close(written @ written.mT, axes @ axes.mT, rtol=1e-5, atol=1e-9)
    turn = rotation_matrices(torch.tensor([0.5, -0.5, -0.5, -0.5]).double())
    torch.testing.assert_close(table[:, :3], original.means[0].double() @ turn.T)


def test_padding_is_left_out(tmp_path: Path):
    padded = scene(10)
    padded.logits[0, [2, 5]] = -torch.inf
    write_splat_ply(tmp_path / "a.ply", padded)
    assert read_splat_ply(tmp_path / "a.ply").means.shape == (1, 8, 3)


def test_a_splat_file_is_accurate_to_a_byte_and_sorted(tmp_path: Path):
    original = scene(200)
    original.colors.clamp_(-1.7, 1.7)
    write_splat_file(tmp_path / "a.splat", original)
    assert (tmp_path / "a.splat").stat().st_size == 200 * 32
    read = read_splat_file(tmp_path / "a.splat")
    weight = torch.sigmoid(original.logits[0]) * original.log_scales[0].sum(-1).exp()
    order = weight.argsort(descending=True)
    assert torch.equal(read.means[0], original.means[0, order])
    torch.testing.assert_close(read.log_scales[0], original.log_scales[0, order], rtol=0, atol=1e-6)
    for name, activation, step in (
        ("logits", torch.sigmoid, 1 / 255),
        ("colors", lambda c: c * 0.2820948, 1 / 255),
    ):
        difference = activation(getattr(read, name)[0]) - activation(getattr(original, name)[0, order])
        assert difference.abs().max() <= 0.51 * step
    unit = torch.nn.functional.normalize(original.quaternions[0, order], dim=-1)
    assert (read.quaternions[0] - unit).abs().max() <= 1 / 128


@pytest.mark.parametrize("write", [write_splat_ply, write_splat_file])
def test_what_cannot_be_written(write, tmp_path: Path):
    two = SplatScene(**{name: torch.cat([getattr(scene(), name)] * 2) for name in NAMES}, bounding_radius=1.0)
    broken, empty = scene(), scene()
    broken.means[0, 3, 1] = torch.nan
    empty.logits[:] = -torch.inf
    for wrong, message in ((two, "splats of 2 prompts"), (broken, "means are not finite"), (empty, "none")):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "a", wrong)
    assert not list(tmp_path.iterdir())


def ply(
    properties: list[str], rows: list[list[float]], *, format: str = "binary_little_endian", count=None
) -> bytes:
    names = [f"property {name if ' ' in name else 'float ' + name}" for name in properties]
    number = len(rows) if count is None else count
    header = "\n".join(["ply", f"format {format} 1.0", f"element vertex {number}", *names, "end_header\n"])
    if format == "ascii":
        return (header + "\n".join(" ".join(map(repr, row)) for row in rows) + "\n").encode()
    order = "<" if "little" in format else ">"
    return header.encode() + b"".join(struct.pack(order + "f" * len(row), *row) for row in rows)


@pytest.mark.parametrize("format", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_point_clouds_of_every_format(format: str, tmp_path: Path):
    rows = np.random.default_rng(0).random((20, 4)).astype(np.float32).tolist()
    (tmp_path / "a.ply").write_bytes(ply(["x", "quality", "z", "y"], rows, format=format))
    points, rgb = read_points_ply(tmp_path / "a.ply")
    torch.testing.assert_close(points, torch.tensor(rows)[:, [0, 3, 2]])
    assert rgb is None


@pytest.mark.parametrize("colored", [True, False])
def test_points_are_read_as_they_were_written(colored: bool, tmp_path: Path):
    points, rgb = torch.randn(7, 3), torch.rand(7, 3) * 1.2 - 0.1
    write_points_ply(tmp_path / "points.ply", points, rgb if colored else None)
    read, colors = read_points_ply(tmp_path / "points.ply")
    assert torch.equal(read, points) and (colors is not None) == colored
    if colors is not None:
        torch.testing.assert_close(colors, rgb.clamp(0, 1), rtol=0, atol=0.5 / 255 + 1e-6)
    with pytest.raises(ValueError, match="not finite in 1 rows"):
        write_points_ply(tmp_path / "broken.ply", torch.tensor([[0.0, torch.nan, 0.0]]))
    assert not (tmp_path / "broken.ply").exists()


def test_colors_of_point_clouds(tmp_path: Path):
    header = ["x", "y", "z", "uchar red", "uchar green", "uchar blue"]
    data = ply(header, []).replace(b"vertex 0", b"vertex 1") + struct.pack("<3f3B", 1, 2, 3, 255, 0, 51)
    (tmp_path / "a.ply").write_bytes(data)
    points, rgb = read_points_ply(tmp_path / "a.ply")
    torch.testing.assert_close(rgb, torch.tensor([[1.0, 0.0, 0.2]]))
    write_splat_ply(tmp_path / "b.ply", scene_of(from_points(points, rgb), 1.0))
    torch.testing.assert_close(read_points_ply(tmp_path / "b.ply")[1], rgb)


XYZ = ["x", "y", "z"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a PLY file"),
        (b"solid\n", "is not a PLY file"),
        (b"ply\n" + b"comment\n" * 10_000, "header of at most 65,536 bytes"),
        (ply(["x", "y"], [[1, 2]]), "lacks the vertex properties z"),
        (ply(XYZ, []), "has 0 vertices, and 1 to 1,000,000 are allowed"),
        (ply(XYZ, [], count=10**6 + 1), "has 1,000,001 vertices"),
        (ply(XYZ, [], count=10**30), "does not begin with vertices"),
        (ply(XYZ, [[1, 2, 3]], count=2), "ends within its 2 vertices"),
        (ply(XYZ, [[1, 2, 3], [1, float("nan"), 3]]), "vertex 1 has a number that is not finite in x, y, z"),
        (ply(XYZ, [[1, 2, 3]], format="ascii", count=2), "ends within its 2 vertices"),
        (ply(XYZ, [["a", 2, 3]], format="ascii"), "has a vertex that is not a number"),
        (ply(["double x", "list uchar int y", "z"], []), "properties that cannot be read"),
        (ply([*XYZ, "x"], []), "properties that cannot be read"),
        (ply(["quad x", "y", "z"], []), "properties that cannot be read"),
        (b"ply\nformat zip 1.0\nelement vertex 1\nend_header\n", "has no PLY format"),
        (b"ply\nformat ascii 1.0\nelement face 1\nend_header\n", "does not begin with vertices"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_in_one_sentence(data: bytes, message: str, tmp_path: Path):
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_points_ply(tmp_path / "a.ply")
    assert "a.ply" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_points_ply, read_splat_ply, read_splat_file])
def test_files_that_cannot_be_read(read, tmp_path: Path):
    with pytest.raises(ValueError, match="cannot read .*missing"):
        read(tmp_path / "missing")
    with pytest.raises(ValueError, match="not a regular file"):
        read(tmp_path)


def test_a_point_cloud_is_not_a_splat_file(tmp_path: Path):
    (tmp_path / "a.ply").write_bytes(ply(XYZ, [[1, 2, 3]]))
    with pytest.raises(ValueError, match="lacks the vertex properties f_dc_0, f_dc_1, .* rot_3"):
        read_splat_ply(tmp_path / "a.ply")


def test_damaged_splat_files_are_refused(tmp_path: Path):
    path = tmp_path / "a.splat"
    write_splat_file(path, scene(4))
    data = path.read_bytes()
    nan, zero = struct.pack("<f", np.nan), struct.pack("<f", 0.0)
    for wrong, message in (
        (b"", "it has 0 bytes"),
        (data[:-1], "it has 127 bytes, not 32 a splat"),
        (data[:32] + nan + data[36:], "splat 1 has a position or scale"),
        (data[:12] + zero + data[16:], "splat 0 has a position or scale"),
        (data * 250_001, "at most 32,000,000 are allowed"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            read_splat_file(path)


@settings(max_examples=60)
@given(st.data())
def test_any_damage_gives_splats_or_one_sentence(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    write_splat_ply(folder / "a.ply", scene(3))
    content = bytearray((folder / "a.ply").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.ply").write_bytes(bytes(content))
    try:
        read = read_splat_ply(folder / "a.ply")
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(getattr(read, name).isfinite().all() for name in NAMES)
