"""The doctor's report: as JSON, as text, and its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amortized.doctor import __main__ as command
from amortized.doctor.machine import Row
from amortized.doctor.packages import OPTIONAL
from tests.doctor.rows import EMBEDDED, named_row, report

ROOT = Path(__file__).resolve().parents[2]


def test_optional_packages_are_not_imported(tmp_path: Path) -> None:
    """Every optional package is installed, as a stub that exits on import."""
    modules = [*OPTIONAL, "tinycudann"]
    for name in modules:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
    done = subprocess.run(
        [sys.executable, "-m", "amortized.doctor", "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = json.loads(done.stdout)
    rows = [Row(**row) for row in output["rows"]]
    assert done.returncode == (0 if output["ok"] else 1) and "Traceback" not in done.stderr
    assert output["ok"] == (not any(row.state in ("missing", "wrong") for row in rows))
    assert list(dict.fromkeys(row.group for row in rows)) == [
        "versions",
        "devices",
        "optional",
        "storage",
        "models",
    ]
    assert all(named_row(rows, name).state == "ok" for name in (*OPTIONAL, "tiny-cuda-nn"))
    assert named_row(rows, "CPU").detail.startswith(f"usable cores: {len(os.sched_getaffinity(0))},")


def test_a_complete_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = report(capsys)
    assert status == 0 and EMBEDDED == {row.detail.split()[0] for row in rows if row.name == "embedded"}
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "versions" and lines[-1] == "Everything required is there."
    # Free disk and memory change between the two reports, so digits are masked.
    lines = [re.sub(r"\d+", "0", line) for line in lines]
    for row in rows:
        detail = re.sub(r"\d+", "0", row.detail)
        assert any(line.startswith(f"  {row.state} ") and detail in line for line in lines)


def test_the_text_is_aligned_and_has_the_fix_below() -> None:
    rows = [
        Row("one", "a", "ok", "here"),
        Row("one", "long name", "-", "not here", "pip install it"),
        Row("two", "b", "missing", "nowhere"),
        Row("two", "c", "wrong", "old"),
    ]
    assert command.as_text(rows).splitlines() == [
        "one",
        "  ok       a          here",
        "  -        long name  not here",
        "                      pip install it",
        "",
        "two",
        "  missing  b          nowhere",
        "  wrong    c          old",
        "",
        "Required but missing or wrong: 2.",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["configs/quickstrat.yaml"], "did you mean configs/quickstart.yaml?"),
        (["configs/quickstart.yaml", "prior"], "the override 'prior' must have the form KEY=VALUE"),
        (["configs/quickstart.yaml", "prior.allow_network=perhaps"], "must be true or false, got 'perhaps'"),
        (["text.shards=folder"], "shards must be a list"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(words, sentence, capsys) -> None:
    assert command.main(words) == 2
    output = capsys.readouterr()
    assert not output.out and output.err.count("\n") == 1
    assert output.err.startswith("amortized.doctor: error: ") and sentence in output.err
