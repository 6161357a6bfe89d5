"""Presets from outside: bombs, devices, pipes, loops. Each ends in one sentence, soon, in little memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.config import ConfigError
from amortized.config.presets import MAX_BASES, MAX_BYTES, MAX_NODES, parse_yaml, read_presets


def laughs(levels: int, width: int = 9) -> str:
    """Each level repeats the one below `width` times: width^levels values from a few lines."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


TEXTS = {
    "billion laughs": laughs(10),
    "laughs in mappings": "a0: &a0 {x: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}, r: *a{i - 1}}}" for i in range(1, 30)),
    "one alias, often": "a: &a [" + "x, " * 1000 + "]\nb: [" + "*a, " * 1000 + "]",
    "an alias of itself": "a: &a {b: *a}",
    "deep lists": "a: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "a: " + "{b: " * 1000 + "1" + "}" * 1000,
    "deep block": "\n".join(" " * i + "a:" for i in range(1500)),
    "unclosed": "a: " + "[" * 100_000,
    "many keys": "\n".join(f"k{i}: 1" for i in range(MAX_NODES)),
    "one key twice": "a: 1\na: 2",
    "a long key": "a" * 100_000 + ": 1\n" + "a" * 100_000 + ": 2",
    "a key of a list": "? [a, b]\n: 1",
    "a long text": "a: " + "x" * (MAX_BYTES + 1),
    "a tag": "!!python/object/apply:os.system ['true']",
    "documents": "--- {a: 1}\n--- {b: 2}",
    "an unknown alias": "a: *nothing",
    "a bad escape": 'a: "\\UFFFFFFFF"',
    "a directive": "%YAML 99999999999999999999.1\n--- {a: 1}",
    "a NUL": "a: \0",
    "a control character": "a: \x07",
    "a tab": "a:\n\t- b",
}


def refused(action: Callable[[], object], seconds: float = 10.0) -> str:
    """The sentence of the ConfigError that `action` raises, in bounded time and memory."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError) as caught:
        action()
    assert time.monotonic() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    return message


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(TEXTS[name], encoding="utf-8")
    assert "preset.yaml" in refused(lambda: read_presets(path))


@given(st.integers(1, 12), st.integers(1, 9))
def test_aliases_are_counted_where_they_repeat(levels: int, width: int) -> None:
    """Read if and only if the expanded tree is small enough."""
    sizes = [2]  # of a0: the list and its item
    for _ in range(1, levels):
        sizes.append(1 + width * sizes[-1])
    try:
        data = parse_yaml(laughs(levels, width), "x")
    except ConfigError:
        assert 1 + sum(sizes) > MAX_NODES
    else:
        assert 1 + sum(sizes) <= MAX_NODES and len(data) == levels


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(16 * 2**30)


def make_loop(path: Path) -> None:
    path.symlink_to(path.with_name("other.yaml"))
    path.with_name("other.yaml").symlink_to(path)


FILES: dict[str, Callable[[Path], object]] = {
    "pipe": make_pipe,
    "sparse": make_sparse,
    "loop": make_loop,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "random": lambda path: path.symlink_to("/dev/urandom"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "dangling": lambda path: path.symlink_to("/nowhere/at/all"),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 100),
    "utf-16": lambda path: path.write_bytes("a: 1".encode("utf-16")),
    "itself": lambda path: path.write_text(f"base: {path.name}"),
    "zero as a base": lambda path: path.write_text("base: /dev/zero"),
    "a long base": lambda path: path.write_text(f"base: {'a' * 5000}"),
    "a NUL as a base": lambda path: path.write_text('base: "a\\0b"'),
    "a surrogate as a base": lambda path: path.write_text('base: "\\ud800"'),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_preset_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    FILES[name](path)
    assert refused(lambda: read_presets(path))
    for link in range(3):
        path.with_name(f"link{link}.yaml").write_text("base: preset.yaml")
        assert refused(lambda link=link: read_presets(path.with_name(f"link{link}.yaml")))


@pytest.mark.parametrize("name", ["", "a" * 300, "a" * 5000, "/".join("a" * 3000), "a\0b", "\udcff"])
def test_a_path_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    assert refused(lambda: read_presets(tmp_path / name))


def test_a_long_chain_of_bases_ends(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\na: 1")
    assert f"more than {MAX_BASES} presets" in refused(lambda: read_presets(tmp_path / "0.yaml"))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_mapping_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    try:
        layers = read_presets(path)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert all(isinstance(layer, dict) for _, layer in layers)


syntax = st.text("{}[]:,-&*!|>'\"%@`#?ab \n\t0\\~<=", max_size=60)


@given(syntax)
def test_any_yaml_is_a_value_or_one_sentence(text: str) -> None:
    try:
        parse_yaml(text, "x")
    except ConfigError as error:
        assert str(error).startswith("x")
