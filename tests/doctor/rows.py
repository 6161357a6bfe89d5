"""Run the doctor, and pick rows of its report."""

from __future__ import annotations

import json

import pytest

from amortized.doctor import __main__ as command
from amortized.doctor.machine import Row

EMBEDDED = {"checkpoints/shapes-prior", "checkpoints/shapes-clip", "checkpoints/shapes-multi-view"}


def named_row(rows, name: str) -> Row:
    [row] = [row for row in rows if row.name == name]
    return row


def model_row(rows, folder: str) -> Row:
    [row] = [row for row in rows if row.detail.startswith(folder)]
    return row


def report(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[Row]]:
    status = command.main([*words, "--json"])
    output = json.loads(capsys.readouterr().out)
    assert output["ok"] == (status == 0)
    return status, [Row(**row) for row in output["rows"]]
