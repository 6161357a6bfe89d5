"""Folders that cannot be a run's, and runs with damaged small files: one sentence, and nothing changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amortized.checkpointing import open_run
from amortized.parallel import World

CONFIG = "seed: 0\ntrainer:\n  steps: 5\n"


def opened(folder: Path, config: str = CONFIG, **options) -> list[str]:
    with open_run(folder, config, World(), **options) as messages:
        return messages


def refused(folder: Path, **options) -> str:
    with pytest.raises(ValueError) as error:
        opened(folder, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    return str(error.value)


CONTENTS = [
    b"",
    b"\xff\xfe\0",
    b"[]",
    b"seed",
    b"a: *a",
    b"- seed: 0",
    b"{" * 5000,
    b"seed: [",
    b"5: 5",
    b"!!x y",
]


@pytest.mark.parametrize("resume", ["auto", "changed", "never"])
@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: repr(c[:10]))
def test_a_damaged_config_is_refused(tmp_path, content, resume):
    opened(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    if content == b"" and resume == "changed":
        return  # no settings: all of them differ
    refused(tmp_path, resume=resume)
    assert (tmp_path / "config.yaml").read_bytes() == content


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "stopped", ".lock"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "dangling link", "sparse"])
def test_a_file_of_another_kind_is_refused(tmp_path, name, kind):
    opened(tmp_path)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "dangling link":
            path.symlink_to("nowhere")
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**36)
    if (name, kind) == (".lock", "sparse"):
        opened(tmp_path)
        assert path.stat().st_size < 1000
    else:
        refused(tmp_path)


@settings(max_examples=60)
@given(text=st.binary(max_size=60))
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "stopped"])
def test_any_bytes_in_a_small_file(tmp_path_factory, name, text):
    folder = tmp_path_factory.mktemp("run")
    opened(folder)
    (folder / name).write_bytes(text)
    try:
        opened(folder)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500


@pytest.mark.parametrize(
    "place", ["", ".", "file", "file/below", "x" * 5000, "/proc/nothing/run", "a\0b", "loop/run"]
)
def test_a_folder_that_cannot_be_a_run_s(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    refused(Path(place))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("resume", ["auto", "changed", "never"])
def test_a_config_that_no_run_wrote_is_never_replaced(tmp_path, resume):
    """Many projects have a config.yaml beside a folder `checkpoints`."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/model.pt").write_text("mine")
    assert "was not written by a run" in refused(tmp_path, resume=resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.yaml"]


def test_the_litter_of_killed_runs_is_removed(tmp_path):
    opened(tmp_path)
    for folder in ("checkpoints", "previews", "evaluation"):
        (tmp_path / folder).mkdir()
    litter = [".config.0123abcd.yaml", ".run.0123abcd.json", "checkpoints/.latest.89abcdef"]
    litter += ["previews/.step_000010.01234567.png"]
    others = [
        ".hidden",
        "notes.0123abcd.txt",
        "evaluation/.results.0123abcd.json",
    ]  # another process may write there
    for name in (*litter, *others):
        (tmp_path / name).write_text("x")
    assert opened(tmp_path) == []
    assert not any((tmp_path / name).exists() for name in litter)
    assert all((tmp_path / name).exists() for name in others)
