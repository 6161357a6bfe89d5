"""Headers of safetensors files: what is accepted, safetensors reads as described; else it is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from amortized.safetensors_header import HEADER_LIMIT, read_header

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.zeros(()),
    "d": torch.zeros(0, 3),
    "e": torch.ones(3, dtype=torch.bool),
}


def write(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def parts_of(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "file"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_names_types_shapes_and_metadata(good):
    entries, metadata = read_header(good)
    assert {name: entry.shape for name, entry in entries.items()} == {
        k: tuple(v.shape) for k, v in TENSORS.items()
    }
    assert [entries[name].dtype for name in "abe"] == ["F32", "BF16", "BOOL"] and metadata == {"format": "pt"}


def accepted_as_described(path: Path) -> bool:
    """Whether a file is accepted; then safetensors must agree about every tensor."""
    try:
        entries, _ = read_header(path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return False
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == {name: entry.shape for name, entry in entries.items()}
    return True


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 2**65), max_size=4),
    st.sampled_from(["F32", "I64", "F4", [0, 24], [2, 3], [3, 2], [6], {"dtype": "F32"}]),
)


@settings(max_examples=200)
@given(
    name=st.sampled_from([*TENSORS, "f", "__metadata__"]),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "more", None]),
    value=VALUES,
)
def test_a_mutated_header_is_refused_or_harmless(good, tmp_path_factory, name, key, value):
    header, data = parts_of(good)
    if key is None or not isinstance(header.get(name), dict):
        header[name] = value
    else:
        header[name][key] = value
    accepted_as_described(write(tmp_path_factory.mktemp("mutated") / "file", header, data))


@settings(max_examples=200)
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_changed_and_missing_bytes(good, tmp_path_factory, place, byte, cut):
    raw = bytearray(good.read_bytes())
    raw[place % len(raw)] = byte
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(raw[: len(raw) - cut])
    accepted_as_described(path)


BAD = {
    "empty": b"",
    "short": b"1234567",
    "endless header": (2**63).to_bytes(8, "little") + b"{}",
    "not text": b"\2\0\0\0\0\0\0\0\xff\xfe",
    "a list": b"\2\0\0\0\0\0\0\0[]",
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "a name twice": b"{%b,%b}" % ((b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}',) * 2),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_such_file_is_refused(tmp_path, kind):
    path = tmp_path / "file"
    data = BAD[kind]
    if kind == "a name twice":
        write(path, data, b"x")
    else:
        path.write_bytes(data)
    assert not accepted_as_described(path)


def test_a_header_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write((HEADER_LIMIT + 1).to_bytes(8, "little"))
        file.truncate(2**30)
    with pytest.raises(ValueError, match="a header of more than"):
        read_header(path)
