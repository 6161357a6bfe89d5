"""Run the doctor, and pick rows of its report."""

from __future__ import annotations

import json
from types import SimpleNamespace

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


def torch_with(gpus: list, *, cuda: str | None = "13.0", nccl: bool = True) -> SimpleNamespace:
    def properties(index: int):
        if isinstance(gpus[index], Exception):
            raise gpus[index]
        return gpus[index]

    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda),
        get_num_threads=lambda: 3,
        backends=SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2")),
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_properties=properties,
        ),
        distributed=SimpleNamespace(
            is_available=lambda: True, is_gloo_available=lambda: True, is_nccl_available=lambda: nccl
        ),
    )
