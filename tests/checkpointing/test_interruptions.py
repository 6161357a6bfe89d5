"""A kill, or a full disk, at every single operation on files: the old checkpoint or the new one remains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import CheckpointError, Checkpoints, list_checkpoints, open_run, read_part
from amortized.checkpointing.checkpoint import verify
from amortized.checkpointing.files import clean
from amortized.generation import exporting
from amortized.parallel import World
from tests.checkpointing.interruptions import Killed, failing, operations
from tests.checkpointing.saving import META, checkpoints_in, same, saved, state_of

NEW_STATE = {5: 50, 6: 6}  # step to seed: a repeated step 5 has other weights


def prepared(folder: Path) -> Callable[[], Checkpoints]:
    """A run with checkpoints of steps 4 and 5 that were uploaded; returns a function that resumes it."""
    upload = f"file://{folder / 'bucket'}"
    first = checkpoints_in(folder / "run/checkpoints", keep=2, upload=upload)
    first.restore(state_of(0), "a prior", print)
    for step in (4, 5):
        first.save(state_of(step), replace(META, step=step))
    first.wait()
    first.close()
    return lambda: checkpoints_in(folder / "run/checkpoints", keep=2, upload=upload)


def save_step(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.restore(state_of(0), "a prior", print)
    checkpoints.save(state_of(NEW_STATE[step]), replace(META, step=step))
    try:
        checkpoints.wait()
    finally:
        checkpoints.close()


def all_are_complete(folder: Path) -> bool:
    """Whether each checkpoint, by its name, is intact."""
    for path in list_checkpoints(folder):
        verify(path)
    return True


@pytest.mark.parametrize("full_disk", [False, True])
@pytest.mark.parametrize("step", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_a_save_that_fails_anywhere_leaves_the_old_checkpoint_or_the_new(tmp_path, step, full_disk):
    folder, spare = tmp_path / "work", tmp_path / "spare"
    again, run = prepared(folder), folder / "run/checkpoints"
    expected = {"old": state_of(5), "new": state_of(NEW_STATE[step])}
    shutil.copytree(folder, spare)
    number = operations(folder, lambda: save_step(again(), step), full_disk=full_disk)
    outcomes = set()
    for at in range(1, number + 1):
        shutil.rmtree(folder)
        shutil.copytree(spare, folder)
        with failing(folder, at, full_disk=full_disk), suppress(Killed, CheckpointError):
            save_step(again(), step)
        leftovers = [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert not (full_disk and leftovers), (at, leftovers)
        assert all_are_complete(run), at
        assert (folder / "bucket/latest").read_text().startswith("step_")
        # A restart finds one of the two, and the same save then completes.
        state, notes, checkpoints = state_of(0), [], again()
        meta = checkpoints.restore(state, "a prior", notes.append)
        assert meta is not None and not [note for note in notes if "damaged" in note], (at, notes)
        is_new = meta.step == step and same(state, expected["new"])
        assert is_new or (meta.step == 5 and same(state, expected["old"])), at
        outcomes.add(is_new)
        checkpoints.save(expected["new"], replace(META, step=step))
        checkpoints.wait()
        checkpoints.close()
        names = {path.name for path in run.iterdir()}
        assert names == {"latest", f"step_{step - 1:06d}", f"step_{step:06d}"}, at
        weights = read_part(run / f"step_{step:06d}", "optimizer")
        assert all(torch.equal(v, expected["new"].tensors()[f"optimizer.{k}"]) for k, v in weights.items()), (
            at
        )
        assert all_are_complete(folder / "bucket"), at
    assert outcomes == {False, True}


def test_a_download_that_is_killed_anywhere_starts_again(tmp_path):
    again = prepared(tmp_path)
    run, spare = tmp_path / "run", tmp_path / "spare"

    def lose() -> None:
        shutil.rmtree(run, ignore_errors=True)

    def download() -> None:
        assert again().restore(state_of(0), "a prior", print) is not None

    lose()
    number = operations(tmp_path, download, full_disk=False)
    assert number > 5
    shutil.copytree(tmp_path / "bucket", spare)
    for at in range(1, number + 1):
        lose()
        with failing(tmp_path, at, full_disk=False), suppress(Killed):
            download()
        assert all_are_complete(run / "checkpoints")
        state = state_of(0)
        meta = again().restore(state, "a prior", print)
        assert meta is not None and meta.step == 5 and same(state, state_of(5)), at


def test_a_start_that_is_killed_anywhere_can_be_repeated(tmp_path):
    """First starts and resumes: config.yaml and run.json are old or new, and no litter remains."""
    old, new = "seed: 0\nmonitoring: {log_every: 1}\n", "seed: 0\nmonitoring: {log_every: 2}\n"

    def start(folder: Path, config: str) -> None:
        with open_run(folder, config, World()):
            pass

    for before in (None, old):
        base = tmp_path / f"base_{before is None}"
        for at in range(1, 20):
            folder = base / str(at)
            if before is not None:
                start(folder, before)
            killed = True
            with failing(tmp_path, at, full_disk=False), suppress(Killed):
                start(folder, new)
                killed = False
            config = folder / "config.yaml"
            assert (config.read_text() if config.exists() else None) in (before, new)
            start(folder, new)
            assert config.read_text() == new
            names = sorted(path.name for path in folder.iterdir())
            assert names == [".lock", "config.yaml", "run.json"]
            if not killed:
                break
        assert at > 3


def write_export(folder: Path) -> None:
    with exporting._new_folder(folder) as partial:
        for name in ("model.safetensors", "config.json", "README.md"):
            (partial / name).write_text(name)


@pytest.mark.parametrize("full_disk", [False, True])
def test_an_export_appears_complete_or_not_at_all(tmp_path, full_disk):
    number = operations(tmp_path, lambda: write_export(tmp_path / "0"), full_disk=full_disk)
    complete = sorted(("README.md", "config.json", "model.safetensors"))
    for at in range(1, number + 1):
        folder = tmp_path / str(at)
        with failing(tmp_path, at, full_disk=full_disk), suppress(Killed, OSError, ValueError):
            write_export(folder)
        if full_disk:
            assert not folder.exists() and not folder.with_name(f".partial_{at}").exists()
        if not folder.exists():
            write_export(folder)
        visible = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
        assert visible == complete and not folder.with_name(f".partial_{at}").exists(), at
        assert all((folder / name).read_text() == name for name in complete)


def test_cleaning_restores_a_replaced_checkpoint_and_leaves_other_files(tmp_path):
    saved(tmp_path, 4, 5)
    (tmp_path / "step_000005").rename(tmp_path / ".replaced_step_000005")
    for name in (".partial_step_000006", ".removed_step_000003", ".partial_mine", "notes"):
        (tmp_path / name).mkdir()
    for name in (".latest.0123abcd", ".mine", "mine.0123abcd"):
        (tmp_path / name).write_text("x")
    assert clean(tmp_path) == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "latest",
        "step_000004",
        "step_000005",
        ".partial_mine",
        "notes",
        ".mine",
        "mine.0123abcd",
    }


def test_a_folder_that_cannot_be_deleted_is_a_note(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 4, 5, keep=2)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("amortized.checkpointing.files.shutil.rmtree", refuse)
    checkpoints.save(state_of(6), replace(META, step=6))
    checkpoints.wait()
    (note,) = checkpoints.pop_messages()
    assert "could not remove" in note and "Permission denied" in note
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000005", "step_000006"]
    assert checkpoints.restore(state_of(0), "a prior", print) is not None
    assert not list(tmp_path.glob(".*"))
