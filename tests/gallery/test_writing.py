"""Writing the page: files of others stay, nothing is written twice, GLBs open from disk within bounds."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from amortized.gallery import writing
from amortized.gallery.writing import write_page
from amortized.pages import VIEWER_FILES
from tests.gallery.folders import entry, write_files


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["index.html", "viewer/viewer.html"])
@pytest.mark.parametrize("kind", ["text", "other page", "empty", "link out", "dangling", "pipe", "folder"])
def test_files_of_others_stay(tmp_path, name, kind):
    from amortized.pages import document

    folder, mine = tmp_path / "made", tmp_path / "mine.html"
    (folder / name).parent.mkdir(parents=True)
    mine.write_text("mine")
    texts = {"text": "<p>mine", "other page": document(title="a", body="", kind="run"), "empty": ""}
    if kind in texts:
        (folder / name).write_text(texts[kind])
    elif kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(mine if kind == "link out" else folder / "missing")
    entries = [entry("a", "a", "glb")]
    write_files(folder, entries)
    before, link = contents(folder), (folder / name).is_symlink()
    reason = write_page(folder, entries)
    assert name.rpartition("/")[2] in reason and "\n" not in reason
    assert contents(folder) == before and (folder / name).is_symlink() == link
    assert mine.read_text() == "mine"


def test_a_page_of_an_earlier_call_is_replaced_if_it_would_change(tmp_path):
    entries = [entry("a", "a", "glb", "stl"), entry("b", "b", "glb")]
    write_files(tmp_path, entries)
    assert write_page(tmp_path, entries[:1]) == ""
    first = contents(tmp_path)
    assert write_page(tmp_path, entries[:1]) == "" and contents(tmp_path) == first
    assert write_page(tmp_path, entries) == ""
    after = contents(tmp_path)
    changed = {name for name in after if first.get(name) != after[name]}
    assert changed == {"index.html", "viewer/b.glb.js"}
    assert set(after) >= {"viewer/a.glb.js", *VIEWER_FILES}


def data_of(folder: Path, name: str) -> bytes:
    text = (folder / f"viewer/{name}.glb.js").read_text()
    return base64.b64decode(text.removeprefix('showObject("').removesuffix('");\n'), validate=True)


@pytest.mark.parametrize("later", [b"same length", b"another length"])
def test_scripts_follow_their_glbs(tmp_path, later):
    entries = [entry(name, "a", "glb") for name in ("a", "b")]
    write_files(tmp_path, entries, b"SAME LENGTH")
    write_page(tmp_path, entries)
    assert data_of(tmp_path, "a") == b"SAME LENGTH"
    os.utime(tmp_path / "viewer/a.glb.js", (1, 1))
    (tmp_path / "a.glb").write_bytes(later)
    (tmp_path / "b.glb").unlink()
    (tmp_path / "viewer/mine.glb.js").write_text("mine")
    write_page(tmp_path, entries)
    assert data_of(tmp_path, "a") == later
    names = {path.name for path in (tmp_path / "viewer").glob("*.glb.js")}
    assert names == {"a.glb.js", "mine.glb.js"}  # that of b is gone, a file of others is not


def test_the_newest_glbs_open_from_disk_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "TOTAL_FROM_DISK", 250)
    sizes = {"a": 100, "b": 101, "c": 4_000_001, "d": 100, "e": 50}
    entries = [entry(name, f"prompt {name}", "glb") for name in sizes]
    for name, size in sizes.items():
        with (tmp_path / f"{name}.glb").open("wb") as file:
            file.truncate(size)
    assert write_page(tmp_path, entries) == ""
    opened = {path.name[0] for path in (tmp_path / "viewer").glob("*.glb.js")}
    # From the newest back, each that still fits: 50, 100, 101 is one too many, then 100.
    assert opened == {"e", "d", "a"}
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.count('class="view"') == 5 and "browsers show 3 of 5 files" in html
    assert html.count("with <code>amortized view</code> only") == 2


def test_a_glb_that_no_browser_can_open_is_a_download_only(tmp_path):
    entries = [entry("a", "a", "glb")]
    with (tmp_path / "a.glb").open("wb") as file:
        file.truncate(100_000_001)
    assert write_page(tmp_path, entries) == ""
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'class="view"' not in html and 'href="a.glb"' in html and "too large for a browser" in html


def test_a_glb_that_cannot_be_read_leaves_the_others(tmp_path):
    entries = [entry("a", "a", "glb"), entry("b", "b", "glb")]
    write_files(tmp_path, entries)
    (tmp_path / "a.glb").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert write_page(tmp_path, entries) == ""
    assert {path.name for path in (tmp_path / "viewer").glob("*.glb.js")} == {"b.glb.js"}


def test_a_disk_without_space_is_one_sentence(tmp_path, monkeypatch):
    entries = [entry("a", "a", "stl")]
    write_files(tmp_path, entries)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "atomic_write_text", full)
    assert "No space left on device" in write_page(tmp_path, entries)


def test_an_empty_folder_gets_no_page(tmp_path):
    assert write_page(tmp_path, []) == "" and list(tmp_path.iterdir()) == []
