"""The boundary of the commands: exceptions, signals and broken terminals are one line and a known status."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from amortized.cli import one_sentence_errors
from amortized.commands.main import COMMANDS
from amortized.config import ConfigError
from amortized.monitoring import TrainingStopped
from amortized.parallel import PeerLost, ReportedByAnotherRank
from tests.rooms import ROOT, sources

STATUSES = {0, 1, 2, 75}


def shown(error: BaseException, capsys, *arguments: str, **options: int) -> tuple[int, str]:
    """Status and stderr of a command that raises `error`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited, one_sentence_errors("name", arguments, **options):
        raise error
    return int(exited.value.code), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("trainer.steps must be at least 1"), 2, "trainer.steps must be at least 1"),
        (ConfigError("a\n b"), 2, "a b"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a b"),
            2,
            "a b: No such file or directory",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            2,
            "x: Permission denied; choose another path",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "x: No space left on device; make room"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the system reports: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2, "x: Read-only file system; choose a folder"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000), 2, "aaa: File name too long"),
        (TrainingStopped("the loss is not finite"), 1, "the loss is not finite"),
        (PeerLost("another process exited"), 1, "another process exited"),
        (MemoryError(), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
        (
            RuntimeError("shapes differ\nin x"),
            1,
            "unexpected error (RuntimeError: shapes differ in x): please report",
        ),
        (TypeError(), 1, "unexpected error (TypeError): please report it with the output of --traceback"),
        (ValueError(""), 1, "unexpected error (ValueError)"),
        (OverflowError("int too large"), 1, "unexpected error (OverflowError: int too large)"),
        (RecursionError("maximum recursion depth"), 1, "unexpected error (RecursionError: maximum"),
        (KeyError("betas"), 1, "unexpected error (KeyError: 'betas')"),
        (SafetensorError("HeaderTooLarge"), 2, "a file of weights is damaged: HeaderTooLarge"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, "cannot write weights"),
        (
            ModuleNotFoundError("No module named 'av'", name="av.codec"),
            1,
            "the package av cannot be imported",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "the system reports: Broken pipe"),
        (ExceptionGroup("two", [ValueError("a")]), 1, "unexpected error (ExceptionGroup: two"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_kind_of_exception_is_one_sentence(error, status, sentence, capsys):
    got, line = shown(error, capsys)
    assert got == status and line.startswith("name: error: ") and sentence in line and line.count("\n") == 1


@given(st.sampled_from([ValueError, OSError, RuntimeError, KeyError, Exception]), st.text(max_size=3000))
def test_any_message_is_one_printable_line(kind, message):
    """Line breaks, surrogates, control characters and great length included."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stderr(out), pytest.raises(SystemExit) as exited:
        with one_sentence_errors("name", []):
            raise kind(message)
    out.flush()
    text = out.buffer.getvalue().decode("ascii")
    assert exited.value.code in STATUSES and text.count("\n") == 1 and len(text) < 20_000


@pytest.mark.parametrize("interrupted", [1, 75])
def test_an_interruption_has_the_status_of_its_command(interrupted, capsys):
    status, line = shown(KeyboardInterrupt(), capsys, interrupted=interrupted)
    assert status == interrupted and line.startswith("name: stopped by Ctrl-C") and line.count("\n") == 1
    assert ("run the same command to resume" in line) is (interrupted == 75)


def test_a_signal_counts_even_if_a_library_turns_it_into_another_exception(capsys):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as exited, one_sentence_errors("name", [], interrupted=75):
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None
        assert exited.value.code == 75 and "stopped by SIGTERM" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGTERM) is not before, "a second signal ends the process at its exit"
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, before if number == signal.SIGTERM else signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_without_a_signal_the_handlers_are_restored(capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    shown(ValueError("x"), capsys, interrupted=75)
    assert before == {number: signal.getsignal(number) for number in before}


def test_another_rank_prints_the_error(capsys):
    assert shown(ReportedByAnotherRank(2), capsys) == (2, "")


@pytest.mark.parametrize("by", ["option", "variable"])
def test_developers_get_the_traceback_and_the_same_status(by, capsys, monkeypatch):
    monkeypatch.setenv("AMORTIZED_TRACEBACK", "1" if by == "variable" else "")
    status, lines = shown(RuntimeError("shapes differ"), capsys, *(["--traceback"] if by == "option" else []))
    assert status == 1 and "Traceback" in lines and "test_boundary.py" in lines
    assert lines.splitlines()[-1].startswith("name: error: unexpected error")


BAD_ARGUMENTS = ["", " ", "\0", "a\0b", "\udcff", "a" * 5000, "~nobody-here/x", "--nonsense", "x=\udcff"]


@pytest.mark.parametrize("command", [one.name for one in COMMANDS])
@pytest.mark.parametrize("value", BAD_ARGUMENTS, ids=range(len(BAD_ARGUMENTS)))
def test_every_command_refuses_bad_arguments_in_one_line(run, command, value, tmp_path, monkeypatch):
    """As the first, the second and the only argument; nothing is written."""
    monkeypatch.chdir(tmp_path)
    for arguments in ([value], [value, value], ["x", value]):
        done = run("amortized", command, *arguments)
        assert done.returncode == 2, (arguments, done)
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr) < 2500


PATH_OPTIONS = [
    ("evaluate", "run", "--output"),
    ("evaluate", "run", "--prompts"),
    ("evaluate", "run", "--prompt"),
    ("generate", "run", "a cube", "--output"),
    ("generate", "run", "--prompts"),
    ("generate", "run", "a cube", "--text-encoder"),
    ("export", "run"),
    ("corpora", "convert", "x.txt", "--output"),
    ("encode", "shapes16", "--encoder"),
    ("encode", "shapes16", "--encoder", "x", "--output"),
    ("playground", "--output"),
    ("playground", "--prior"),
    ("playground", "--prompt"),
    ("convert", "mvdream", "x.pt", "folder", "--tokenizer"),
    ("convert", "scaledreamer", "x.pth", "folder", "--corpus", "mg15", "--text-encoder"),
]


@pytest.mark.parametrize("option", PATH_OPTIONS, ids=" ".join)
def test_every_path_option_refuses_what_no_path_can_be(run, option):
    for value in ("", " ", "a\0b", "\udcff"):
        done = run("amortized", *option, value)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, (value, done)


# ---- real processes ---------------------------------------------------------------------------


def process(code: str, *arguments: str, **options) -> subprocess.Popen:
    program = f"import sys; from amortized.commands.main import main\n{code}\nsys.exit(main())"
    command = [sys.executable, "-c", program, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "latin-1"} | options
    return subprocess.Popen(command, cwd=ROOT, **pipes)


SLOW_IMPORT = """
import builtins, os, time
real = builtins.__import__
def slow(name, *args, **kwargs):
    if name == "torch":
        print("importing", flush=True)
        time.sleep(30)
    return real(name, *args, **kwargs)
builtins.__import__ = slow
"""


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (("train", "configs/quickstart.yaml"), signal.SIGTERM, 75),
        (("train", "configs/quickstart.yaml"), signal.SIGUSR1, 75),
        (("train", "configs/quickstart.yaml"), signal.SIGINT, 75),
        (("playground",), signal.SIGINT, 1),
        (("playground",), signal.SIGTERM, 1),
    ],
)
def test_a_signal_during_the_imports_is_one_line(command, number, status):
    started = process(SLOW_IMPORT, *command)
    assert started.stdout.readline() == "importing\n"
    started.send_signal(number)
    _, error = started.communicate(timeout=60)
    assert started.returncode == status and error.count("\n") == 1 and "stopped by" in error, error


def test_a_second_interrupt_ends_a_process_whose_threads_do_not(tmp_path):
    code = """
import threading, time
from amortized.commands import main as module
def load(command):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("ready", flush=True)
    time.sleep(60)
module._load = load
"""
    started = process(code, "doctor")
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    line = started.stderr.readline()
    started.send_signal(signal.SIGINT)
    _, rest = started.communicate(timeout=30)
    assert started.returncode == 1 and "stopped by Ctrl-C" in line and rest == ""


@pytest.mark.parametrize(
    "arguments", [("--help",), ("corpora", "list"), ("corpora", "show", "shapes100k", "--number", "20000")]
)
def test_a_closed_pipe_is_silent(arguments):
    read, write = os.pipe()
    os.close(read)
    done = process("", *arguments, stdout=write)
    os.close(write)
    _, error = done.communicate(timeout=120)
    assert error == "" and done.returncode in STATUSES


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = process("", "corpora", "list", stdout=full)
        _, error = done.communicate(timeout=120)
    assert done.returncode == 1 and error.count("\n") == 1 and "No space left on device" in error


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_encoding_of_the_terminal_stops_a_message(encoding, tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    corpus = tmp_path / "w\u00fcrfel-\U0001f3b2.txt"
    corpus.write_text("ein W\u00fcrfel \U0001f3b2\n", encoding="utf-8")
    done = process("", "corpora", "show", str(corpus), env=environment)
    output, error = done.communicate(timeout=120)
    assert done.returncode == 0 and "1 prompt," in output and error == "", error
    missing = process("", "train", f"{corpus}.yaml", env=environment)
    _, error = missing.communicate(timeout=120)
    assert missing.returncode == 2 and error.count("\n") == 1 and "there is no preset" in error


MAINS = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
    for path in sources("amortized", "corpora", "benchmarks")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MAINS)
def test_every_module_that_runs_has_help(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as exited:
        runpy.run_module(module, run_name="__main__")
    assert not exited.value.code and "usage:" in capsys.readouterr().out
