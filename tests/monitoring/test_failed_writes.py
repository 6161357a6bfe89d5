"""A run survives every failed write that it can do without, and reports it once."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from amortized.checkpointing import find_checkpoint
from amortized.monitoring.best_effort import append_whole
from amortized.monitoring.logs import RunLog
from tests.training.toy import make_trainer

ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EROFS", "EACCES", "EDQUOT", "EIO")}
WRITERS = {  # by the part of a path that they write
    "log.jsonl": "log.jsonl",
    "events.jsonl": "events.jsonl",
    "tfevents": "tensorboard",
    "previews": "previews",
    "profile": "steps_1_2.json",
    ".index.": "index.html",
}


def fail_below(monkeypatch, parts: tuple[str, ...], number: int) -> None:
    """Make every opening of a file for writing or flushing fail if its path has one of `parts`."""
    plain = os.open

    def failing(path, *args, **kwargs):
        if any(part in str(path) for part in parts):
            raise OSError(number, os.strerror(number), str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)


def train(folder: Path, capfd, **changes) -> list[str]:
    """Train four steps, which must end with an intact checkpoint; returns the failures reported."""
    monitoring = {"preview_every": 2, "profile": (1, 2), **changes}
    trainer = make_trainer(folder, steps=4, checkpointing={"every": 2}, monitoring=monitoring)
    assert trainer.train() == 4
    assert find_checkpoint(folder).name == "step_000004"
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return [line for line in shown.out.splitlines() if "cannot write" in line]


@pytest.mark.parametrize("name", ["ENOSPC", "EACCES"])
def test_a_run_ends_as_trained_if_nothing_but_checkpoints_can_be_written(tmp_path, monkeypatch, capfd, name):
    fail_below(monkeypatch, tuple(WRITERS), ERRORS[name])
    reports = train(tmp_path / "run", capfd)
    for writer in WRITERS.values():
        (report,) = [line for line in reports if f"{writer} (" in line]
        assert os.strerror(ERRORS[name]) in report and "training continues" in report


@pytest.mark.parametrize("part", ["log.jsonl", "events.jsonl", "tfevents"])
@pytest.mark.parametrize("name", ERRORS)
def test_one_failed_writer_costs_no_other(tmp_path, monkeypatch, capfd, part, name):
    fail_below(monkeypatch, (part,), ERRORS[name])
    log = RunLog(tmp_path, None, start=0, steps=3)
    for step in (1, 2, 3):
        log.write(step, {"loss": 0.5 * step})
        log.note(f"note {step}")
        log.advance(loss=1.0)
    log.close()
    if part != "log.jsonl":
        assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    if part != "events.jsonl":
        notes = [json.loads(line)["note"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
        assert sum("cannot write" in note for note in notes) == 1
        assert "failed in this run" in notes[-1]
    if part != "tfevents":
        assert [point.value for point in curves(tmp_path).Scalars("loss")] == [0.5, 1.0, 1.5]
    shown = capfd.readouterr().out
    assert shown.count("cannot write") == 1 and os.strerror(ERRORS[name]) in shown
    assert all(f"note {step}" in shown for step in (1, 2, 3))


def curves(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard")).Reload()


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_run_survives_what_happens_to_its_files_meanwhile(tmp_path, capfd, change):
    run, names = tmp_path / "run", ("tensorboard", "previews", "log.jsonl", "events.jsonl", "profile")
    monitoring = {"preview_every": 1, "profile": (2, 3)}
    trainer = make_trainer(run, steps=4, checkpointing={"every": 2}, monitoring=monitoring)
    plain = trainer.step

    def step(number, interrupted):
        for path in [run / name for name in names] if number == 1 else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if change == "replaced":  # a folder by a file, a file by a folder
                path.mkdir() if path.suffix else path.write_text("not yours")
        return plain(number, interrupted=interrupted)

    trainer.step = step
    assert trainer.train() == 4
    assert find_checkpoint(run).name == "step_000004"
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    reports = [line for line in shown.out.splitlines() if "cannot write" in line]
    if change == "removed":  # what follows is in new files
        assert not reports and all((run / name).exists() for name in names)
        steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
        assert steps == [2, 3, 4] == [point.step for point in curves(run).Scalars("loss")]
    else:
        assert len(reports) == len(names), reports
        assert all((run / name).read_text() == "not yours" for name in names if "." not in name)


def test_a_full_device_costs_log_and_events_only(tmp_path, capfd):
    """A real ENOSPC."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("log.jsonl", "events.jsonl"):
        (run / name).symlink_to("/dev/full")
    reports = train(run, capfd)
    assert [line for line in reports if "events.jsonl (No space left on device)" in line]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capfd, broken):
    def call(name):
        def called(*args, **kwargs):
            if name == broken:
                raise ConnectionResetError("the server is away")

        return called

    tracker = SimpleNamespace(**{name: call(name) for name in ("init", "log", "finish")})
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    log = RunLog(tmp_path, "trackio", start=0, steps=2)
    log.write(1, {"loss": 1.0})
    log.write(2, {"loss": 1.0})
    log.close()
    shown = capfd.readouterr().out
    assert shown.count("cannot write") == 1
    assert "cannot write monitoring.tracker=trackio (the server is away)" in shown


def test_a_closed_console_does_not_end_the_run(tmp_path, monkeypatch):
    def closed(*args, **kwargs):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(tqdm, "write", closed)
    monkeypatch.setattr(tqdm, "update", closed)
    assert make_trainer(tmp_path, steps=2).train() == 2
    notes = [json.loads(line)["note"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum("cannot write the console (Broken pipe)" in note for note in notes) == 1


def test_a_closed_console_does_not_block_the_thread_that_answers_a_signal(tmp_path, monkeypatch):
    """An error inside the bar would leave its lock acquired by the main thread."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    log = RunLog(tmp_path, None, start=0, steps=3)
    log.bar.mininterval = 0
    log.advance(loss=0.5)
    answer = threading.Thread(target=log.show, args=("SIGTERM: training stops",), daemon=True)
    answer.start()
    answer.join(10)
    assert not answer.is_alive()
    log.close()
    notes = [json.loads(line)["note"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sum("cannot write the console (Broken pipe)" in note for note in notes) == 1


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path, plain = tmp_path / "log.jsonl", os.write
    append_whole(path, b"first\n")
    calls = iter([3, None])  # three bytes, then the disk is full

    def partial(descriptor, data):
        if (count := next(calls)) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(descriptor, data[:count])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", partial)
        with pytest.raises(OSError, match="No space"):
            append_whole(path, b"second\n")
    append_whole(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"


def test_a_pipe_in_place_of_the_log_is_not_waited_for(tmp_path, capfd):
    os.mkfifo(tmp_path / "log.jsonl")
    log = RunLog(tmp_path, None, start=0, steps=1)
    log.write(1, {"loss": 1.0})
    log.close()
    assert capfd.readouterr().out.count("cannot write") == 1


@pytest.mark.parametrize(
    "other", [b"[1]\n", b"7\n", b"\xff\xfe\n", b'{"step": "3"}\n', b'{"step": 1}', b"{" * 10**6, b"\0" * 99]
)
def test_other_lines_of_a_log_are_dropped_at_a_restart(tmp_path, other):
    own = [f'{{"step": {step}}}\n'.encode() for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_bytes(own[0] + other + b"\n" + own[1] + own[2] + other)
    RunLog(tmp_path, None, start=2, steps=3, quiet=True).close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_bytes().splitlines()]
    assert steps in ([1, 2], [1, 1, 2, 1])  # the fifth is a line of ours
