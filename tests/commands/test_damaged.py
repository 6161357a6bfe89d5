"""Runs and exported folders from strangers: loaded as they were written, or refused in one sentence."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from amortized.generation import TextTo3D
from amortized.generation.exporting import export
from amortized.locks import FileLock
from tests.commands.runs import small


def refused(load) -> str:
    with pytest.raises(ValueError) as error:
        load()
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    return str(error.value)


@pytest.fixture
def model(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def relist(folder: Path) -> None:
    """Make config.json list the weights that are there."""
    data = json.loads((folder / "config.json").read_text())
    raw = (folder / "model.safetensors").read_bytes()
    data["files"] = {"model.safetensors": {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}}
    (folder / "config.json").write_text(json.dumps(data))


def load(folder: Path) -> TextTo3D:
    return TextTo3D.from_pretrained(folder, device="cpu")


KEYS = {
    "format": 1,
    "more": 5,
    "auto_map": {"AutoModel": "evil.Model"},
    "files": {},
    "text_dim": 10**9,
    "generator": {"name": "hyper-ingp", "hyper_hidden": 2**31},
    "environment": {"name": "hash"},
    "scenes": [],
    "text_encoder": {"path": "nowhere", "trust_remote_code": True},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", KEYS)
def test_a_config_with_another_value_is_refused(model, key):
    """Without allocating what it asks for."""
    data = json.loads((model / "config.json").read_text()) | {key: KEYS[key]}
    (model / "config.json").write_text(json.dumps(data))
    assert "model cannot be used (" in refused(lambda: load(model))


WEIGHTS = ["missing", "unexpected", "shape", "not finite", "cut", "one bit", "none", "pickle", "link"]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("is_listed", [False, True])
def test_weights_that_do_not_fit_are_refused(model, kind, is_listed):
    path = model / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    match kind:
        case "missing":
            del tensors[name]
        case "unexpected":
            tensors["more"] = torch.ones(1)
        case "shape":
            tensors[name] = torch.ones(3, 5, 7)
        case "not finite":
            tensors[name] = tensors[name] * float("inf") * 0
        case "none":
            tensors = {}
    if kind in ("missing", "unexpected", "shape", "not finite", "none"):
        save_file(tensors, path)
    raw = bytearray(path.read_bytes())
    match kind:
        case "cut":
            path.write_bytes(raw[:-9])
        case "one bit":
            raw[20] ^= 1
            path.write_bytes(raw)
        case "pickle":
            torch.save({"a": 1}, path)
        case "link":
            path.unlink()
            path.symlink_to("/dev/zero")
    if is_listed and kind != "link":
        relist(model)
    assert "model cannot be used (" in refused(lambda: load(model))


def test_other_files_are_reported_and_not_read(model, caplog):
    expected = load(model).generator.state_dict()
    save_file({k: v * 0 for k, v in load_file(model / "model.safetensors").items()}, model / "z.safetensors")
    (model / "modeling.py").write_text("raise SystemExit")
    caplog.clear()
    assert all(torch.equal(v, expected[k]) for k, v in load(model).generator.state_dict().items())
    (record,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert "modeling.py" in record and "z.safetensors" in record


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def changed(data: Any, numbers: list[int], value: Any) -> Any:
    """A copy of nested mappings with one value, found by `numbers`, replaced."""
    inner = top = {"top": copy.deepcopy(data)}
    key: Any = "top"
    for number in numbers:
        if not isinstance(inner[key], dict) or not inner[key]:
            break
        inner, key = inner[key], sorted(inner[key])[number % len(inner[key])]
    inner[key] = value
    return top["top"]


CHANGES = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NUMBERS = st.lists(st.integers(0, 40), min_size=1, max_size=4)


@CHANGES
@given(numbers=NUMBERS, value=VALUES)
def test_a_mutated_config_of_an_export(exported, model, numbers, value):
    data = json.loads((exported / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(changed(data, numbers, value)))
    try:
        load(model)
    except ValueError as error:
        assert "\n" not in str(error)


@CHANGES
@given(numbers=NUMBERS, value=VALUES)
def test_a_mutated_config_of_a_run(trained, tmp_path, numbers, value):
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(trained, run)
    data = yaml.safe_load((trained / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(changed(data, numbers, value)))
    try:
        TextTo3D.from_run(run, device="cpu")
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"a: &a [*a]", b"prior: 5", b"prior: {}\ntext: []\n"]
)
def test_a_damaged_config_of_a_run(trained, tmp_path, content):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "config.yaml").write_bytes(content)
    refused(lambda: TextTo3D.from_run(run, device="cpu"))
    refused(lambda: export(run, tmp_path / "out"))
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    refused(lambda: TextTo3D.from_run(run, device="cpu"))
    assert not (tmp_path / "out").exists()


# ---- writing an export ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["folder", "file", "dangling link", "below a file", "long name", "root", "dots"]
)
def test_an_export_never_replaces_anything(trained, tmp_path, kind):
    folder = tmp_path / "out"
    match kind:
        case "folder":
            folder.mkdir()
        case "file":
            folder.write_text("mine")
        case "dangling link":
            folder.symlink_to("nowhere")
        case "below a file":
            (tmp_path / "file").write_text("mine")
            folder = tmp_path / "file/out"
        case "long name":
            folder = tmp_path / ("x" * 5000)
        case "root":
            folder = Path("/")
        case "dots":
            folder = tmp_path / ".."
    before = sorted(path.name for path in tmp_path.iterdir())
    refused(lambda: export(trained, folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_a_killed_export_left_is_used_and_what_it_did_not_is_not(trained, tmp_path):
    partial = tmp_path / ".partial_out"
    partial.mkdir()
    (partial / "thesis.tex").write_text("mine")
    assert "is in the way" in refused(lambda: export(trained, tmp_path / "out"))
    assert (partial / "thesis.tex").read_text() == "mine"
    (partial / "thesis.tex").unlink()
    (partial / "model.safetensors").write_text("half")
    lock = FileLock(partial / ".lock")
    message = refused(lambda: export(trained, tmp_path / "out"))
    assert f"another process (process {os.getpid()} on" in message and "is exporting to" in message
    lock.close()
    export(trained, tmp_path / "out")
    load(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_several_exports_at_once_write_one_folder(trained, tmp_path):
    command = [sys.executable, "-m", "amortized.commands.main", "export", str(trained), str(tmp_path / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outcomes = [(process.communicate()[1], process.returncode) for process in processes]
    assert sorted(status for _, status in outcomes) == [0, 2, 2, 2], outcomes
    assert all("Traceback" not in stderr for stderr, _ in outcomes)
    load(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_corpus_that_changed_under_a_run_is_refused_by_every_command(trained, prior, tmp_path, run):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    identity = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(identity | {"corpus": "0" * 32}))
    for command in (small(prior, folder), ["evaluate.py", str(folder)]):
        done = run(*command)
        (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
        assert done.returncode == 2 and "the corpus shapes16 has other prompts or splits" in line


def test_an_empty_output_is_refused(prior, run, tmp_path, monkeypatch):
    done = run(*small(prior, tmp_path)[:3], "output=")
    assert done.returncode == 2 and "output" in done.stderr and "Traceback" not in done.stderr


def test_what_a_killed_export_left_is_replaced(trained, tmp_path):
    """safetensors writes to a hidden temporary file first."""
    partial = tmp_path / ".partial_out"
    partial.mkdir()
    for name in (".lock", ".tmpvu8Rtr", "config.json"):
        (partial / name).write_bytes(b"cut")
    export(trained, tmp_path / "out")
    assert not partial.exists() and not list((tmp_path / "out").glob(".*"))
    load(tmp_path / "out")
