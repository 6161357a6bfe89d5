"""An evaluation's folder is replaced whole or not at all, and nothing of others is lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from pkgutil import resolve_name

import pytest

from amortized.evaluation import folder as module
from amortized.evaluation.folder import foreign_files, partial_of, replaced_folder, writing
from amortized.files import atomic_write_text


def write(target: Path, version: str, *names: str) -> None:
    """A small report: pictures, a page that names its version, an index."""
    entries = [{"prompt": name, "id": name, "strip": f"strips/{name}.png"} for name in names]
    with writing(target):
        for entry in entries:
            atomic_write_text(target / entry["strip"], version)
        for page in ("results.json", "results.csv", "config.yaml", "index.html"):
            atomic_write_text(target / page, version)
        atomic_write_text(target / "index.json", json.dumps(entries))


def evaluate(target: Path, version: str, *names: str, retain: bool = False) -> None:
    with replaced_folder(target, retain=retain) as new:
        write(new, version, *names)


def contents(target: Path) -> dict[str, bytes]:
    return {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}


def reports(tmp_path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The contents of an old report and of the new one, which shows other prompts."""
    for version, names in (("old", "ab"), ("new", "bc")):
        evaluate(tmp_path / "expected" / version, version, *names)
    return contents(tmp_path / "expected/old"), contents(tmp_path / "expected/new")


def test_a_new_report_leaves_no_file_of_the_old_one(tmp_path):
    _, new = reports(tmp_path)
    for version, names in (("old", "ab"), ("new", "bc")):
        evaluate(tmp_path / "run/evaluation", version, *names)
    assert contents(tmp_path / "run/evaluation") == new
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["evaluation"]


class Stop(BaseException):
    """As from Ctrl-C."""


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("os.rename", FULL),
        ("pathlib.Path.write_bytes", FULL),
        ("pathlib.Path.mkdir", FULL),
        ("os.replace", Stop()),
    ],
    ids=["rename", "write", "mkdir", "stop"],
)
def test_a_failure_at_any_write_leaves_the_old_report(tmp_path, monkeypatch, call, error):
    old, new = reports(tmp_path)
    target = tmp_path / "run/evaluation"
    evaluate(target, "old", "a", "b")
    original, failures = resolve_name(call), 0
    remaining = [0]

    def fail(*args, **options):
        remaining[0] -= 1
        if remaining[0] == 0:
            raise error
        return original(*args, **options)

    for nth in range(1, 60):
        remaining[0] = nth
        with monkeypatch.context() as patch:
            patch.setattr(call, fail)
            try:
                evaluate(target, "new", "b", "c")
            except (ValueError, Stop) as raised:
                failures += 1
                if not isinstance(error, Stop):
                    assert "No space left on device" in str(raised) and "\n" not in str(raised)
        litter = {path.name for path in (tmp_path / "run").iterdir()}
        if remaining[0] > 0:  # fewer writes than that
            break
        assert contents(target) in (old, new), nth
        assert litter == {"evaluation"}, nth
        evaluate(target, "old", "a", "b")
    assert failures > 1 and contents(target) == new


def test_a_kill_at_any_write_leaves_a_whole_report(tmp_path):
    """A process that ends without any cleaning, before each call of a function that changes a name."""
    old, new = reports(tmp_path)
    target, states = tmp_path / "run/evaluation", []
    for nth in range(1, 60):
        evaluate(target, "old", "a", "b")
        if (child := os.fork()) == 0:
            remaining = nth

            def die_at(original):
                def call(*args, **options):
                    nonlocal remaining
                    remaining -= 1
                    return os._exit(9) if remaining == 0 else original(*args, **options)

                return call

            os.replace, os.rename = die_at(os.replace), die_at(os.rename)
            evaluate(target, "new", "b", "c")
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        states.append(contents(target))
        assert states[-1] in (old, new, {}), nth  # {}: between the two renames
        with pytest.raises(ZeroDivisionError), replaced_folder(target):
            _ = 1 / 0  # whatever comes next restores the report
        assert contents(target) == (old if killed else new)
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"evaluation"}
        if not killed:
            break
    assert states.count({}) == 1 and states.count(old) > 5 and states[-1] == new


@pytest.mark.parametrize("name", ["notes.txt", "strips/mine.png", "deep/er/x", "index.html.bak", "-rf"])
def test_files_of_others_are_never_lost(tmp_path, name):
    target = tmp_path / "evaluation"
    evaluate(target, "old", "a")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_text("mine")
    assert foreign_files(target) == [Path(name)]
    before = contents(target)
    with pytest.raises(ValueError, match="has files that evaluate did not write .*: choose a new folder"):
        evaluate(target, "new", "a")
    assert contents(target) == before
    evaluate(target, "new", "a", retain=True)
    assert (target / name).read_text() == "mine" and (target / "index.html").read_text() == "new"
    # One that would be replaced is refused, also if it appeared during the evaluation.
    with (
        pytest.raises(ValueError, match="was not written by evaluate"),
        replaced_folder(target, retain=True) as new,
    ):
        write(new, "newer", "a", "z")
        (target / "strips/z.png").write_text("mine")
    assert (target / "strips/z.png").read_text() == "mine" and (target / "index.html").read_text() == "new"


@pytest.mark.parametrize(
    "index", [None, "{}", "[1]", '[{"seed": 0, "strip": "notes.txt"}]', "[", '"notes.txt"']
)
def test_an_index_of_another_kind_owns_nothing(tmp_path, index):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "index.html").write_text("mine")
    if index is not None:
        (tmp_path / "index.json").write_text(index)
    before = contents(tmp_path)
    for retain in (False, True):
        with pytest.raises(ValueError, match="did not write|was not written by evaluate"):
            evaluate(tmp_path, "new", "a", retain=retain)
        assert contents(tmp_path) == before


def test_what_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file: choose a folder"):
        evaluate(tmp_path / "file", "new", "a")
    with pytest.raises(ValueError, match="cannot write"):
        evaluate(tmp_path / "file/below", "new", "a")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(ValueError, match="a disk is mounted: choose a new folder inside it"):
        evaluate(tmp_path / "disk", "new", "a")
    evaluate(tmp_path / "disk/report", "new", "a")


def test_two_evaluations_do_not_write_one_folder(tmp_path):
    target = tmp_path / "evaluation"
    with replaced_folder(target) as new:
        with pytest.raises(ValueError, match="another evaluation is writing"):
            evaluate(target, "second", "a")
        write(new, "first", "a")
    assert (target / "index.html").read_text() == "first" and not partial_of(target).exists()


def test_a_report_of_an_earlier_version_is_replaced(tmp_path):
    """It has no index, and pictures of evaluations that it replaced."""
    for name in ("results.json", "results.csv", "index.html", "strips/0a.png", "turntables/0a.mp4"):
        (tmp_path / "evaluation" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "evaluation" / name).write_text("x")
    evaluate(tmp_path / "evaluation", "new", "a")
    assert not (tmp_path / "evaluation/turntables").exists()


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    evaluate(tmp_path / "elsewhere/report", "old", "a")
    (tmp_path / "evaluation").symlink_to(tmp_path / "elsewhere/report")
    evaluate(tmp_path / "evaluation", "new", "a")
    assert (tmp_path / "evaluation").is_symlink() and (
        tmp_path / "elsewhere/report/index.html"
    ).read_text() == "new"


def test_litter_is_no_reason_to_refuse(tmp_path):
    evaluate(tmp_path / "evaluation", "old", "a")
    for name in (".DS_Store", "Thumbs.db", "._index.html", f"strips/.a.{'0' * 8}.png"):
        (tmp_path / "evaluation" / name).write_text("x")
    evaluate(tmp_path / "evaluation", "new", "a")
    assert module.LITTER.fullmatch("notes.txt") is None
