"""Uploaded copies of checkpoints: complete, verified, and never blocking the training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import (
    CheckpointConfig,
    CheckpointError,
    Checkpoints,
    can_resume,
    list_checkpoints,
    load_generator,
    read_part,
)
from amortized.checkpointing.identity import load_identity
from amortized.parallel import World
from tests.training.toy import make_trainer


def test_a_new_machine_resumes_from_an_uploaded_copy(tmp_path):
    url = f"file://{tmp_path / 'bucket'}"
    make_trainer(tmp_path / "uninterrupted").train(quiet=True)
    first = make_trainer(tmp_path / "lost", checkpointing={"upload": url})
    step = first.step
    first.step = lambda number, interrupted: step(number, interrupted=interrupted or number >= 19)
    assert first.train(quiet=True) == 20
    assert [path.name for path in list_checkpoints(tmp_path / "bucket")] == ["step_000010", "step_000020"]
    assert (tmp_path / "bucket/latest").read_text() == "step_000020\n"
    assert can_resume(tmp_path / "lost", CheckpointConfig())
    shutil.rmtree(tmp_path / "lost")
    assert can_resume(tmp_path / "lost", CheckpointConfig(upload=url))
    assert not can_resume(tmp_path / "lost", CheckpointConfig(upload=f"{url}/empty"))
    assert not can_resume(tmp_path / "lost", CheckpointConfig())
    second = make_trainer(tmp_path / "lost", checkpointing={"upload": url})
    second.train(quiet=True)
    assert "step_000020 from file://" in (tmp_path / "lost/events.jsonl").read_text()
    for part in ("generator", "ema", "optimizer"):
        tensors, expected = (
            read_part(tmp_path / run / "checkpoints/step_000030", part) for run in ("lost", "uninterrupted")
        )
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items()) and len(tensors) > 0


def test_a_damaged_copy_is_skipped(tmp_path):
    url = f"file://{tmp_path / 'bucket'}"
    make_trainer(tmp_path / "run", steps=20, checkpointing={"upload": url}).train(quiet=True)
    names = [path.name for path in list_checkpoints(tmp_path / "bucket")]
    (tmp_path / "bucket" / names[-1] / "manifest.json").unlink()
    notes: list[str] = []
    checkpoints = Checkpoints(tmp_path / "new", CheckpointConfig(upload=url), World())
    owner = load_identity(tmp_path / "run")
    assert checkpoints.uploader is not None and owner is not None
    checkpoints.uploader.claim(owner, is_new=True)
    assert checkpoints.uploader.download_newest(tmp_path / "new", notes.append) == tmp_path / "new" / names[0]
    assert len(notes) == 1 and "is damaged" in notes[0] and "trying the one before" in notes[0]
    (tmp_path / "bucket" / names[0] / "state.json").write_text("{}")
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints at file://.* is intact"):
        checkpoints.uploader.download_newest(tmp_path / "new", notes.append)


def test_a_failed_upload_does_not_stop_training(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("the cable was cut")

    bucket = {"upload": f"file://{tmp_path / 'bucket'}"}
    trainer = make_trainer(tmp_path / "run", steps=20, checkpointing=bucket)
    assert trainer.checkpoints.uploader is not None
    files = trainer.checkpoints.uploader.files
    monkeypatch.setattr(files, "exists", fail)
    with pytest.raises(ValueError, match="cannot use checkpointing.upload=file://.* .the cable was cut"):
        trainer.train(quiet=True)  # the copies there are unknown
    monkeypatch.undo()
    trainer = make_trainer(tmp_path / "run", steps=20, checkpointing=bucket)
    monkeypatch.setattr(trainer.checkpoints.uploader.files, "put_file", fail)
    assert trainer.train(quiet=True) == 20
    assert len(list_checkpoints(tmp_path / "run/checkpoints")) == 2
    events = (tmp_path / "run/events.jsonl").read_text()
    assert "could not upload step_000010 to file://" in events and "the cable was cut" in events
    assert "could not upload step_000020 to file://" in events


def test_an_unknown_protocol_is_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot open checkpointing.upload=nowhere://x"):
        make_trainer(tmp_path, checkpointing={"upload": "nowhere://x"})


def test_the_best_checkpoint_is_retained(tmp_path):
    trainer = make_trainer(tmp_path, steps=30, checkpointing={"every": 5, "keep": 1, "best_by": "guidance"})
    scores = iter([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])
    save = trainer.save
    trainer.save = lambda step, score: save(step, next(scores) if score is not None else None)
    trainer.train(quiet=True)
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step_000010", "step_000030"]
    assert load_generator(tmp_path, trainer.state.generator, "best").name == "step_000010"
    assert load_generator(tmp_path, trainer.state.generator, "step_000030").name == "step_000030"
    with pytest.raises(CheckpointError, match="has no checkpoint step_7: it has step_000010, step_000030"):
        load_generator(tmp_path, trainer.state.generator, "step_7")
    with pytest.raises(ValueError, match="checkpointing.best_by=color must be one of loss, guidance"):
        make_trainer(tmp_path / "other", checkpointing={"best_by": "color"}).train(quiet=True)
