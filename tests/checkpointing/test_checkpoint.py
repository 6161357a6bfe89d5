"""Checkpoints: complete or absent, verified before loading, written while training continues."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from amortized.checkpointing import (
    CheckpointConfig,
    CheckpointError,
    CheckpointMeta,
    Checkpoints,
    list_checkpoints,
    load_generator,
    read_part,
)
from amortized.checkpointing import checkpoints as module
from amortized.checkpointing.checkpoint import step_of, verify
from amortized.parallel import World
from tests.checkpointing.saving import META, same, saved, state_of


def test_a_saved_state_is_restored_bit_for_bit(tmp_path):
    checkpoints, other = saved(tmp_path, 5), state_of(8)
    notes = []
    assert not same(state_of(5), other)
    assert checkpoints.restore(other, "a prior", notes.append) == META and notes == []
    assert same(state_of(5), other)
    names = other.tensors()
    assert "optimizer.generator.0.weight.exp_avg" in names and "generator.1.running_mean" in names
    assert not any(name.startswith("optimizer.learned") for name in names)  # it has no moments yet
    assert (tmp_path / "latest").read_text() == "step_000005\n"


@pytest.mark.parametrize(
    ("stored", "prior", "outcome"),
    [
        ("2:" + "0" * 16, "2:" + "0" * 16, "loaded"),
        ("2:" + "0" * 16, "2:" + "1" * 16, "refused"),
        ("0" * 16, "2:" + "1" * 16, "noted"),  # of a version that read four numbers of each tensor
        ("0" * 16, "", "refused"),
        ("", "2:" + "1" * 16, "refused"),
        ("", "", "loaded"),
    ],
)
def test_the_priors_fingerprint_is_compared(tmp_path, stored, prior, outcome):
    checkpoints, notes = Checkpoints(tmp_path, CheckpointConfig(), World()), []
    meta = CheckpointMeta(step=5, prompts_seen=20, prior=stored, text_dim=4)
    checkpoints.save(state_of(5), meta)
    checkpoints.wait()
    if outcome == "refused":
        with pytest.raises(CheckpointError, match="trained with another prior"):
            checkpoints.restore(state_of(8), prior, notes.append)
    else:
        assert checkpoints.restore(state_of(8), prior, notes.append) == meta
        assert [("older version" in note) for note in notes] == [True] * (outcome == "noted")


def test_no_file_is_a_pickle(tmp_path):
    saved(tmp_path, 5)
    assert {path.suffix for path in (tmp_path / "step_000005").iterdir()} == {".safetensors", ".json"}


def test_a_checkpoint_has_the_weights_of_the_call_to_save(tmp_path, monkeypatch):
    """A thread writes the checkpoint while the weights change."""
    started, may_write, write = threading.Event(), threading.Event(), module.save_tensors

    def slow(*args):
        started.set()
        assert may_write.wait(20)
        write(*args)

    monkeypatch.setattr(module, "save_tensors", slow)
    checkpoints, state = Checkpoints(tmp_path, CheckpointConfig(keep=2), World()), state_of(5)
    checkpoints.save(state, META)
    assert started.wait(20) and list_checkpoints(tmp_path) == []
    with torch.no_grad():
        for value in state.tensors().values():
            value.zero_()
    may_write.set()
    checkpoints.wait()
    other = state_of(8)
    checkpoints.restore(other, "a prior", print)
    assert same(state_of(5), other)


def test_the_newest_and_every_nth_are_retained(tmp_path):
    saved(tmp_path, 4, 5, 8, 9, 10, 11, keep=2, keep_every=4)
    steps = [step_of(path) for path in list_checkpoints(tmp_path)]
    assert steps == [4, 8, 10, 11]


def test_a_partial_folder_is_removed(tmp_path):
    checkpoints = saved(tmp_path, 5)
    shutil.copytree(tmp_path / "step_000005", tmp_path / ".partial_step_000006")
    assert checkpoints.restore(state_of(8), "a prior", print) == META
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["latest", "step_000005"]


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file of a checkpoint in one way; returns its name."""
    file = rng.choice(sorted(folder.iterdir()))
    data = bytearray(file.read_bytes())
    match rng.randrange(4):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(data[: rng.randrange(len(data))])
        case 2:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        case 3:
            file.write_bytes(data + bytes(rng.randrange(1, 9)))
    return file.name


def test_two_hundred_damaged_checkpoints_are_all_detected(tmp_path):
    """Each is reported in one sentence, and the one before is loaded."""
    saved(tmp_path / "good", 4, 5)
    good_manifest = contents(tmp_path / "good/step_000005/manifest.json")
    expected, rng, damaged_files = state_of(4), random.Random(0), set()
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(keep=9), World())
    for _ in range(200):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "run")
        name = damage(tmp_path / "run/step_000005", rng)
        manifest = tmp_path / "run/step_000005/manifest.json"
        if name == manifest.name and manifest.exists() and contents(manifest) == good_manifest:
            continue  # only white space has changed
        damaged_files.add(name)
        state, notes = state_of(8), []
        meta = checkpoints.restore(state, "a prior", notes.append)
        assert meta is not None and meta.step == 4 and same(state, expected), name
        (note,) = notes
        assert "step_000005 is damaged (" in note and note.endswith("trying the one before")
        assert "\n" not in note
    assert len(damaged_files) == 3


def contents(manifest: Path) -> object:
    """The data of a manifest, or None if it is not JSON."""
    try:
        return json.loads(manifest.read_bytes())
    except ValueError:
        return None


def test_an_error_if_no_checkpoint_is_intact(tmp_path):
    checkpoints = saved(tmp_path, 4, 5)
    for name in ("step_000004", "step_000005"):
        (tmp_path / name / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints in .* is intact: restore"):
        checkpoints.restore(state_of(8), "a prior", print)


def test_a_manifest_cannot_name_files_outside_the_folder(tmp_path):
    saved(tmp_path, 5)
    manifest = tmp_path / "step_000005/manifest.json"
    manifest.write_text(json.dumps({"files": {"../../secret": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(CheckpointError, match="step_000005 is damaged .manifest.json names a file outside"):
        verify(tmp_path / "step_000005")


def test_a_checkpoint_of_another_model_is_refused_in_one_sentence(tmp_path):
    checkpoints = saved(tmp_path / "run/checkpoints", 5)
    with pytest.raises(
        CheckpointError, match="step_000005 does not fit the model of this config .*"
    ) as error:
        checkpoints.restore(state_of(8, width=2), "a prior", print)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="step_000005 does not fit the model of this config"):
        load_generator(tmp_path / "run", nn.Linear(3, 7))


def test_ema_weights_are_loaded_if_there_are_any(tmp_path):
    saved(tmp_path / "run/checkpoints", 5)
    expected, loaded = state_of(5).ema, nn.Linear(4, 2)
    assert load_generator(tmp_path / "run", loaded).name == "step_000005"
    assert expected is not None and torch.equal(loaded.weight, expected.weight)
    assert read_part(tmp_path / "run/checkpoints/step_000005", "ema").keys() == {"weight", "bias"}
    (tmp_path / "run/checkpoints/step_000005/state.json").unlink()
    with pytest.raises(CheckpointError, match="is damaged .*: No such file.*remove it to use the one before"):
        load_generator(tmp_path / "run", loaded)


@pytest.fixture
def little_disk_space():
    """Limits files to 64 kB, as if the disk were full."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, old)


def test_a_full_disk_stops_the_run_and_preserves_the_checkpoint_before(tmp_path, little_disk_space):
    checkpoints = saved(tmp_path, 5)
    checkpoints.save(state_of(6, width=30_000), replace(META, step=6))
    with pytest.raises(
        CheckpointError,
        match="cannot write .*step_000006 .*; the last good checkpoint is .*step_000005: free disk space",
    ) as error:
        checkpoints.wait()
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000005"]
    state = state_of(8)
    assert checkpoints.restore(state, "a prior", print) == META and same(state, state_of(5))


def test_a_stager_is_used_once(tmp_path, monkeypatch):
    """A stager of torch 2.11 is empty after one use, and none can be used after `close`."""

    class Once(module.DefaultStager):
        used = False

        def stage(self, tensors, **keywords):
            assert not self.used, "the stager is used twice"
            self.used = True
            return super().stage(tensors, **keywords)

        def close(self) -> None:
            self.used = True
            super().close()

    monkeypatch.setattr(module, "DefaultStager", Once)
    checkpoints = saved(tmp_path, 5, 6)
    checkpoints.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000005", "step_000006"]
