"""Atomic file writes."""

import os
import threading

import pytest

from amortized.files import atomic_path, atomic_write_bytes, atomic_write_text


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
