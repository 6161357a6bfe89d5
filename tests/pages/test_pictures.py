"""Pictures: a PNG file of the folder with its size, or none; never a file outside, whatever the path."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from amortized.pages import Picture, find_picture


def save(path, width=7, height=5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, "PNG")


@pytest.mark.parametrize("size", [(1, 1), (512, 64), (70, 3)])
def test_the_size_is_that_of_the_file(tmp_path, size):
    save(tmp_path / "strips/a.png", *size)
    assert find_picture(tmp_path, "strips/a.png") == Picture(
        path="strips/a.png", width=size[0], height=size[1]
    )


def test_other_files_and_files_outside_are_no_picture(tmp_path):
    outside, folder = tmp_path / "outside.png", tmp_path / "run"
    save(outside)
    save(folder / "a.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:20])
    (folder / "zero.png").write_bytes((folder / "a.png").read_bytes()[:16] + bytes(40))
    (folder / "text.png").write_text("<svg onload=alert(1)>")
    os.mkfifo(folder / "pipe.png")
    names = [
        "link.png",
        "linked/outside.png",
        "loop",
        "cut.png",
        "zero.png",
        "text.png",
        "pipe.png",
        "none.png",
    ]
    names += ["../outside.png", str(outside), "a\0.png", "x" * 5000, "", ".", "a.png/b"]
    assert [name for name in names if find_picture(folder, name) is not None] == []
    assert find_picture(folder, "a.png") and find_picture(folder, "../run/a.png")  # it stays in the folder
