"""Checkpoints: whole or absent, never believed when damaged, written while training goes on."""

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
from amortized.checkpointing.checkpoint import verify
from amortized.parallel import TrainingState, World

ABOUT = CheckpointMeta(step=5, prompts_seen=20, prior="a prior", text_dim=4)


def state_of(seed: int, width: int = 3) -> TrainingState:
    """A small model after two steps."""
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    ema, learned = nn.Linear(4, 2), nn.Linear(2, 2)
    parameters = [*generator.parameters(), *learned.parameters()]
    optimizer = torch.optim.Adam(parameters, fused=True)
    for _ in range(2):
        generator(torch.randn(5, 4)).sum().backward()  # the learned model has not learned yet
        optimizer.step()
    return TrainingState(generator=generator, ema=ema, optimizer=optimizer, learned=learned)


def saved(folder: Path, *steps: int, **keywords) -> Checkpoints:
    kept = Checkpoints(folder, CheckpointConfig(**{"keep": 9, **keywords}), World())
    for step in steps:
        kept.save(state_of(step), replace(ABOUT, step=step))
    kept.wait()
    return kept


def same(one: TrainingState, other: TrainingState) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    kept, other = saved(tmp_path, 5), state_of(8)
    notes = []
    assert not same(state_of(5), other)
    assert kept.restore(other, "a prior", notes.append) == ABOUT and notes == []
    assert same(state_of(5), other)
    names = other.tensors()
    assert "optimizer.generator.0.weight.exp_avg" in names and "generator.1.running_mean" in names
    assert not any(name.startswith("optimizer.learned") for name in names)  # nothing there to save
    assert (tmp_path / "latest").read_text() == "step_000005\n"


def test_no_file_is_a_pickle(tmp_path):
    saved(tmp_path, 5)
    assert {path.suffix for path in (tmp_path / "step_000005").iterdir()} == {".safetensors", ".json"}


def test_what_is_saved_is_what_was_there_when_it_was_asked(tmp_path, monkeypatch):
    """Saving goes on in a thread: the weights change meanwhile."""
    begun, go_on, write = threading.Event(), threading.Event(), module.save_tensors

    def slow(*arguments):
        begun.set()
        assert go_on.wait(20)
        write(*arguments)

    monkeypatch.setattr(module, "save_tensors", slow)
    kept, state = Checkpoints(tmp_path, CheckpointConfig(keep=2), World()), state_of(5)
    kept.save(state, ABOUT)
    assert begun.wait(20) and list_checkpoints(tmp_path) == []
    with torch.no_grad():
        for value in state.tensors().values():
            value.zero_()
    go_on.set()
    kept.wait()
    other = state_of(8)
    kept.restore(other, "a prior", print)
    assert same(state_of(5), other)


def test_the_newest_and_every_so_many_stay(tmp_path):
    saved(tmp_path, 4, 5, 8, 9, 10, 11, keep=2, keep_every=4)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_000004", "step_000008", "step_000010", "step_000011",
    ]  # fmt: skip


def test_a_folder_left_half_written_is_removed(tmp_path):
    kept = saved(tmp_path, 5)
    shutil.copytree(tmp_path / "step_000005", tmp_path / ".partial_step_000006")
    assert kept.restore(state_of(8), "a prior", print) == ABOUT
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["latest", "step_000005"]


def damaged(folder: Path, chance: random.Random) -> str:
    """Harm one file of a checkpoint in one way; says which."""
    file = chance.choice(sorted(folder.iterdir()))
    data = bytearray(file.read_bytes())
    match chance.randrange(4):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(data[: chance.randrange(len(data))])
        case 2:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            file.write_bytes(data)
        case 3:
            file.write_bytes(data + bytes(chance.randrange(1, 9)))
    return file.name


def test_two_hundred_damaged_checkpoints_are_all_seen(tmp_path):
    """Each is told in one sentence, and the one before is taken."""
    saved(tmp_path / "good", 4, 5)
    expected, chance, harmed = state_of(4), random.Random(0), set()
    kept = Checkpoints(tmp_path / "run", CheckpointConfig(keep=9), World())
    for _ in range(200):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "run")
        name = damaged(tmp_path / "run/step_000005", chance)
        manifest = tmp_path / "run/step_000005/manifest.json"
        if name == manifest.name and manifest.exists() and readable(manifest) == readable_good(tmp_path):
            continue  # harmed where it says nothing, such as white space
        harmed.add(name)
        state, notes = state_of(8), []
        about = kept.restore(state, "a prior", notes.append)
        assert about is not None and about.step == 4 and same(state, expected), name
        (note,) = notes
        assert "step_000005 is damaged (" in note and note.endswith("trying the one before")
        assert "\n" not in note
    assert len(harmed) == 3


def readable(manifest: Path) -> object:
    try:
        return json.loads(manifest.read_bytes())
    except ValueError:
        return None


def readable_good(folder: Path) -> object:
    return readable(folder / "good/step_000005/manifest.json")


def test_where_none_is_whole_the_run_says_so(tmp_path):
    kept = saved(tmp_path, 4, 5)
    for name in ("step_000004", "step_000005"):
        (tmp_path / name / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints in .* is intact: restore"):
        kept.restore(state_of(8), "a prior", print)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    saved(tmp_path, 5)
    manifest = tmp_path / "step_000005/manifest.json"
    manifest.write_text(json.dumps({"files": {"../../secret": {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(CheckpointError, match="step_000005 is damaged .manifest.json names a file outside"):
        verify(tmp_path / "step_000005")


def test_another_model_is_one_sentence(tmp_path):
    kept = saved(tmp_path / "run/checkpoints", 5)
    with pytest.raises(
        CheckpointError, match="step_000005 does not fit the model of this config .*"
    ) as error:
        kept.restore(state_of(8, width=2), "a prior", print)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="step_000005 does not fit the model of this config"):
        load_generator(tmp_path / "run", nn.Linear(3, 7))


def test_averaged_weights_are_evaluated_where_there_are_some(tmp_path):
    saved(tmp_path / "run/checkpoints", 5)
    expected, found = state_of(5).ema, nn.Linear(4, 2)
    assert load_generator(tmp_path / "run", found).name == "step_000005"
    assert expected is not None and torch.equal(found.weight, expected.weight)
    assert read_part(tmp_path / "run/checkpoints/step_000005", "ema").keys() == {"weight", "bias"}
    (tmp_path / "run/checkpoints/step_000005/state.json").unlink()
    with pytest.raises(CheckpointError, match="is damaged .No such file.*remove it to use the one before"):
        load_generator(tmp_path / "run", found)


@pytest.fixture
def little_room():
    """No file may be longer than 64 kB, as if the disk were full."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, old)


def test_a_full_disk_stops_the_run_and_keeps_the_one_before(tmp_path, little_room):
    kept = saved(tmp_path, 5)
    kept.save(state_of(6, width=30_000), replace(ABOUT, step=6))
    with pytest.raises(
        CheckpointError,
        match="cannot write .*step_000006 .*; the last good checkpoint is .*step_000005: free disk space",
    ) as error:
        kept.wait()
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000005"]
    state = state_of(8)
    assert kept.restore(state, "a prior", print) == ABOUT and same(state, state_of(5))


def test_a_stager_is_used_once(tmp_path, monkeypatch):
    """torch 2.11's empties itself after one use, and none is made to be used after its `close`."""

    class Once(module.DefaultStager):
        used = False

        def stage(self, tensors, **keywords):
            assert not self.used, "used again"
            self.used = True
            return super().stage(tensors, **keywords)

        def close(self) -> None:
            self.used = True
            super().close()

    monkeypatch.setattr(module, "DefaultStager", Once)
    kept = saved(tmp_path, 5, 6)
    kept.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000005", "step_000006"]
