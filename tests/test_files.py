"""Atomic file writes, and paths."""

import contextlib
import os
import shlex
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.files import (
    PROJECT,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    checked_path,
    in_project,
    restore_hint,
    started_in,
)


def test_writes_text_and_bytes_exactly_and_creates_parents(tmp_path):
    atomic_write_text(tmp_path / "a" / "b.txt", "è\r\n\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "è\r\n\n".encode()
    atomic_write_bytes(tmp_path / "a" / "b.txt", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_an_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.png"
    atomic_write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        assert path.read_text() == "old"
        raise RuntimeError("half way")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.png"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_reader_never_gets_a_partial_file(tmp_path):
    path, texts = tmp_path / "x", ("a" * 200_000, "b" * 100_000)
    atomic_write_text(path, texts[0])
    contents, done = set(), threading.Event()

    def read():
        while not done.is_set():
            contents.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(20):
        atomic_write_text(path, texts[turn % 2])
    done.set()
    reader.join()
    assert contents <= set(texts)


def test_respects_the_umask_like_an_ordinary_file(tmp_path):
    atomic_write_text(tmp_path / "atomic", "")
    (tmp_path / "ordinary").write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(
    ("run", "output", "start"),
    [
        ("/data/project/outputs/mine", "outputs/mine", ["/data/project"]),
        ("/data/mine", "mine", ["/data"]),
        ("/data/renamed", "outputs/mine", []),
        ("/data/outputs/mine", "/data/outputs/mine", []),
        ("/data/outputs/mine", "../outputs/mine", []),
    ],
)
def test_the_folder_in_which_a_run_was_started(run: str, output: str, start: list[str]) -> None:
    assert [str(folder) for folder in started_in(run, output)] == start


def test_a_relative_path_is_tried_here_then_there_then_in_the_project(tmp_path: Path, monkeypatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "a").mkdir(parents=True)
    (there / "b").mkdir()
    monkeypatch.chdir(here)
    assert in_project("a", there) == "a" and in_project("b", there) == str(there / "b")
    assert in_project("configs", there) == str(PROJECT / "configs") and in_project("c", there) == "c"


@given(st.text(max_size=300) | st.sampled_from(["a" * 5000, "/".join(["a" * 200] * 40), "\udcff", "a\0b"]))
def test_any_text_is_a_path_that_the_system_accepts_or_a_reason(text: str) -> None:
    name = in_project(text)
    assert name == text or name.startswith(str(PROJECT))
    try:
        path = checked_path(text)
    except ValueError as error:
        assert str(error)
    else:
        os.path.lexists(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)


@pytest.mark.parametrize("path", ["elsewhere/x", "/no/checkpoints/x", "checkpoint/x"])
def test_only_the_projects_models_can_be_restored(path: str) -> None:
    assert restore_hint(path) == ""


def test_the_command_that_restores_a_model_can_be_pasted(monkeypatch, tmp_path: Path) -> None:
    project = tmp_path / "my [new] project"
    for folder in (".git", "checkpoints/one", "checkpoints/two"):
        (project / folder).mkdir(parents=True)
    monkeypatch.setattr("amortized.files.PROJECT", project)
    for path in ("checkpoints/two", f"{project}/checkpoints/two"):
        hint = restore_hint(path)
        words = shlex.split(hint[hint.index("(") + 1 : hint.index(")")])
        assert words == ["git", "-C", str(project), "checkout", "--", "checkpoints/two"]
        assert hint.endswith("another one of checkpoints/ (one, two)")
