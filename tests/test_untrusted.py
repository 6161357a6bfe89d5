"""Files that others wrote: pipes, devices, loops, huge and broken files are one sentence each, at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.untrusted import (
    inside,
    open_regular,
    parse_yaml_object,
    read_bytes,
    read_json,
    read_json_object,
    read_text,
    read_yaml_object,
    short,
)


def make(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        return Path("/dev/zero")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**36)
    elif kind == "long name":
        return folder / ("x" * 5000)
    elif kind == "NUL":
        return folder / "a\0b"
    return path


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "kind", ["missing", "pipe", "loop", "folder", "device", "sparse", "long name", "NUL"]
)
def test_what_is_no_small_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    for read in (read_bytes, read_text, read_json):
        with pytest.raises(ValueError, match="cannot read") as caught:
            read(path)
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_limits_are_exact_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf12345")
    (tmp_path / "link").symlink_to("file")
    assert (
        read_bytes(tmp_path / "link", limit=8) == b"\xef\xbb\xbf12345"
        and read_text(tmp_path / "link") == "12345"
    )
    with pytest.raises(ValueError, match="it has 8 bytes, and at most 7 are"):
        read_bytes(tmp_path / "file", limit=7)


def test_a_file_that_grows_after_its_size_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open_regular(path, limit=5) as file:
        path.write_bytes(b"1234567")
        assert len(file.read(6)) == 6  # what `read_bytes` then refuses


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("json") / "file.json"
    path.write_bytes(data)
    try:
        expected = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        with pytest.raises(ValueError, match=r"file\.json"):
            read_json(path)
    else:
        assert json.dumps(read_json(path)) == json.dumps(expected)


def test_deep_json_and_other_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds a JSON list, not an object"):
        read_json_object(path)


def test_long_and_unprintable_paths_are_shortened() -> None:
    assert short("a/b.json") == "a/b.json" and len(short("x" * 5000)) < 200
    assert "\x1b" not in short("a\x1b[2Jb") and "\n" not in short("a\nb")


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a\n  b: *a\n",
        "- a\n",
        "a",
        "",
        "1: a\n",
        "a: {2: b}\n",
        "a: [{null: b}]\n",
        "a: [1\n",
        "a: !!python/object/apply:os.system [echo]\n",
        "a: 2020-99-99\n",
        "a: " + "[" * 1_000_000,
        "a: " + "{b: " * 200_000,
        "".join(" " * i + "a:\n" for i in range(1000)),
        "a: " + "9" * 10_000,
        "? [a]\n: b\n",
        "\x00",
        "a: 1\n--- \nb: 2\n",
        "x" * (2**20 + 1),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_yaml_of_others_is_plain_and_bounded(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"file\.yaml") as error:
        read_yaml_object(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_yaml_of_ours_is_read() -> None:
    assert parse_yaml_object("a: {b: [1, 2.5, null, yes]}\nc: 'x'\n", "x") == {
        "a": {"b": [1, 2.5, None, True]},
        "c": "x",
    }


def test_a_path_of_others_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "in").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "in"):
        (place / "file").touch()
    (folder / "inner").symlink_to("in")
    (folder / "outer").symlink_to(tmp_path)
    (folder / "secret").symlink_to(tmp_path / "file")
    (folder / "loop").symlink_to("loop")
    (tmp_path / "to-run").symlink_to(folder)
    for base in (folder, tmp_path / "to-run", str(folder)):
        for path in ("file", "in/file", "inner/file", "in/../file", "missing/file", "."):
            assert inside(base, path) == Path(base) / path
        for path in ("../file", "outer/file", "secret", str(tmp_path / "file"), "in/../../file", "a\0b"):
            with pytest.raises(ValueError, match="cannot read") as caught:
                inside(base, path)
            assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot read"):
        open_regular(inside(folder, "loop"), 9).__enter__()
