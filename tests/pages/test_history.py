"""Training curves: exact for logs of training, bounded for long ones, a note for anything else."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from amortized.pages.curves import curves
from amortized.pages.history import POINTS, load_history, read_history


def log(path, num_steps: int, **columns) -> None:
    records = [
        {"step": step, **{name: values[step - 1] for name, values in columns.items()}, "batch_digest": "a"}
        for step in range(1, num_steps + 1)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("num_steps", [2, 239, 240, 241, 5000])
def test_curves_are_means_over_equal_parts(tmp_path, num_steps):
    loss = np.random.default_rng(0).normal(size=num_steps).tolist()
    log(tmp_path / "log.jsonl", num_steps, loss=loss, opacity=loss, **{"time/forward": [0.25] * num_steps})
    history = read_history(tmp_path / "log.jsonl")
    parts = np.array_split(np.arange(num_steps), min(POINTS, num_steps))
    assert len(history.curves["loss"]) == len(parts) <= POINTS
    assert history.seconds == 0.25 * num_steps
    if num_steps % len(parts) == 0:
        expected = [(float(part.mean() + 1), float(np.mean(np.array(loss)[part]))) for part in parts]
        assert history.curves["loss"] == [pytest.approx(point) for point in expected]
    assert curves(history).count("<svg") == 2 and len(curves(history)) < 20_000
    assert read_history(tmp_path / "log.jsonl", last=1).seconds == 0.25  # an earlier checkpoint


def test_numbers_of_another_kind_are_skipped(tmp_path):
    values = [0.5, "x", None, True, math.nan, math.inf, 10**400, [1], 1e300, 0.25]
    log(tmp_path / "log.jsonl", len(values), loss=values)
    history = read_history(tmp_path / "log.jsonl")
    assert history.curves == {"loss": [(1.0, 0.5), (10.0, 0.25)]} and history.seconds is None


def test_a_last_line_that_a_kill_cut_off_is_skipped(tmp_path):
    path = tmp_path / "log.jsonl"
    log(path, 9, loss=[float(i) for i in range(9)])
    whole = path.read_bytes()
    for length in range(len(whole) - 20, len(whole) + 1):
        path.write_bytes(whole[:length])
        assert len(load_history(path).curves["loss"]) >= 8


SHAPES = [
    b"[]\n",
    b'{"loss": 1}\n',
    b"1\n",
    b"null\n",
    b'{"step": "1"}\n',
    b"{\n",
    b"\xff\xfe\n",
    b"\x00" * 99,
]
SHAPES += [
    b'{"step": ' + b"1" * 5000 + b"}\n",
    b'{"step": 1e999}\n',
    b"[" * 100_000 + b"\n",
    b"x" * (2**20 + 1),
]


@pytest.mark.parametrize("data", SHAPES, ids=range(len(SHAPES)))
def test_a_log_of_another_shape_is_left_out_with_a_note(tmp_path, data):
    path = tmp_path / "log.jsonl"
    for content in (data, b'{"step": 1, "loss": 1.0}\n' + data):
        path.write_bytes(content)
        history = load_history(path)
        assert not history.curves
        assert "Left out" in curves(history) and "svg" not in curves(history)


def test_random_damage_is_a_note_or_curves(tmp_path):
    path, rng = tmp_path / "log.jsonl", random.Random(0)
    log(path, 20, loss=[0.5] * 20)
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        history = load_history(path)
        assert ("<svg" in curves(history)) != ("Left out" in curves(history))
        assert "\n" not in history.note


def test_no_log_a_folder_and_a_pipe_are_notes(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        assert "cannot read" in load_history(path).note
