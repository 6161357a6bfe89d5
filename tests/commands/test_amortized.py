"""The `amortized` command: its list, help, completion and exit status, and from any working directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from amortized.commands.main import COMMANDS
from tests.rooms import ROOT


def test_the_commands_are_scripts():
    """One real process: status, one sentence, no traceback."""
    failed = subprocess.run(
        [sys.executable, "train.py", "configs/quickstart.yaml", "trainer.stps=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert failed.returncode == 2
    assert failed.stderr.strip() == (
        "train.py: error: unknown key trainer.stps in the overrides; did you mean trainer.steps?"
    )


def test_the_command_lists_its_subcommands_quickly():
    """Without importing PyTorch; a misspelled preset is reported without it too."""
    command = [sys.executable, "-X", "importtime", "-m", "amortized.commands.main"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60}
    shown = subprocess.run([*command, "--help"], **options)
    assert shown.returncode == 0 and all(f"    {one.name}" in shown.stdout for one in COMMANDS)
    failed = subprocess.run([*command, "train", "configs/quikstart.yaml"], **options)
    assert failed.returncode == 2 and "did you mean configs/quickstart.yaml?" in failed.stderr
    for done in (shown, failed):
        assert not [line for line in done.stderr.splitlines() if line.endswith((" torch", " numpy"))]


@pytest.mark.parametrize("command", [one.name for one in COMMANDS])
def test_every_subcommand_has_help_that_starts_with_an_example(run, command):
    shown = run("amortized", command, "--help")
    assert shown.returncode == 0
    description = shown.stdout.partition("\n\n")[2].partition("options:")[0]
    assert re.search(r"^  (amortized|python|torchrun) \S+", description, re.MULTILINE), description


def test_unknown_subcommands_and_the_version(run):
    assert run("amortized", "trian").returncode == 2
    assert re.fullmatch(r"amortized3d \d+\.\d+\.\d+\n", run("amortized", "--version").stdout)


def test_completion_offers_commands_and_options():
    environment = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_TYPE": "9"}
    for line, expected in (("amortized ex", "export"), ("amortized generate --tex", "--text-encoder")):
        request = {**environment, "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        code = "import os; os.dup2(1, 8); from amortized.commands.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=request, capture_output=True, text=True
        )
        assert expected in done.stdout, done.stderr


def test_commands_work_in_any_working_directory(tmp_path):
    """Presets and embedded models are found in the project; the benchmarks too, in a checkout."""
    code = "import sys; from amortized.commands.main import main; sys.exit(main())"
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    for arguments, expected in (
        (("train", "configs/quickstart.yaml", "--dry-run"), "HyperINGP"),
        (("doctor", "configs/quickstart.yaml"), "checkpoints/shapes-prior is complete"),
        (("bench", "--help"), "full-size"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], **options)
        assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_checkout_the_benchmarks_are_one_sentence(run, monkeypatch, tmp_path):
    monkeypatch.setattr("amortized.commands.main.PROJECT", tmp_path)
    failed = run("amortized", "bench")
    assert failed.returncode == 2 and "run this command in a checkout" in failed.stderr
    assert failed.stderr.count("\n") == 1
