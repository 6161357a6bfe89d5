"""A run's folder: created, resumed, used by one run at a time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from amortized.checkpointing import open_run, run_folder
from amortized.commands.compose import RunConfig
from amortized.config import config_to_yaml, load_config
from amortized.parallel import World

CONFIG = "seed: 0\ntrainer:\n  steps: 5\n  log_every: 1\n"


def opened(folder, config=CONFIG, **how) -> list[str]:
    with open_run(folder, config, World(), **how) as told:
        return told


def test_defining_settings_may_not_change_silently(tmp_path):
    folder = tmp_path / "run"
    assert opened(folder) == [] and opened(folder) == []
    with pytest.raises(ValueError, match="already holds a run: resume it"):
        opened(folder, resume="never")
    other = CONFIG.replace("5", "6").replace("seed: 0", "seed: 1").replace("log_every: 1", "log_every: 2")
    with pytest.raises(
        ValueError,
        match=r"other settings \(seed was 0, now 1; trainer.steps was 5, now 6\): restore them to resume it, "
        "choose another output=FOLDER, or resume with the new ones by --resume changed",
    ):
        opened(folder, other)
    assert (folder / "config.yaml").read_text() == CONFIG
    (told,) = opened(folder, other, resume="changed")
    assert told == (
        "resuming with changed settings: seed was 0, now 1; trainer.steps was 5, now 6; "
        "monitoring.log_every was 1, now 2"
    )
    assert (folder / "config.yaml").read_text() == other


def test_other_settings_may_change(tmp_path):
    opened(tmp_path)
    other = CONFIG.replace("log_every: 1", "log_every: 7") + "distributed:\n  strategy: fsdp2\n"
    (told,) = opened(tmp_path, other)
    assert "monitoring.log_every was 1, now 7" in told and "distributed.strategy was unset, now fsdp2" in told
    assert (tmp_path / "config.yaml").read_text() == other


def test_resumable_settings_exist():
    given = ["output=o", "corpus=c", "prior=p", "generator.grid.engine=torch"]
    known = set(run_folder.differences("{}", config_to_yaml(load_config(RunConfig, None, given))))
    for name in run_folder.RESUMABLE_SETTINGS:
        found = [key for key in known if key == name or key.startswith(f"{name}.")]
        assert found or name in ("generator.checkpointing", "generator.compile"), name


def test_a_stopped_run_is_not_restarted(tmp_path):
    opened(tmp_path)
    (tmp_path / "stopped").write_text("step 7: loss not finite; lower optimizer.learning_rate\n")
    with pytest.raises(ValueError, match=r"stopped and would stop again \(step 7: .*rate\): change"):
        opened(tmp_path)
    opened(tmp_path, resume="changed")
    assert opened(tmp_path) == []


HOLDER = """
import sys
from pathlib import Path
from amortized.checkpointing import open_run
from amortized.parallel import World
with open_run(Path(sys.argv[1]), "seed: 0", World()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_by_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT_S", 0.5)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(
        ValueError, match=f"in use by another run .process {holder.pid} on .*: wait for it to end"
    ):
        opened(tmp_path, "seed: 0")
    holder.kill()  # no chance to clean up: the system does
    holder.wait()
    assert opened(tmp_path, "seed: 0") == []
    assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()


def test_a_message_if_the_folder_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    (told,) = opened(tmp_path)
    assert told.endswith("(No locks available): make sure that no other run writes there")


def test_a_run_of_the_previous_release_resumes_under_its_old_keys(tmp_path):
    """Renamed keys are the same settings; only a value that differs is reported."""
    old = "seed: 0\norder:\n  kind: shuffle\nsurroundings: null\ntrainer:\n  steps: 5\n  accumulation: 2\n"
    opened(tmp_path, old + "  checkpoint_every: 10\n")
    new = "seed: 0\nprompt_order:\n  kind: shuffle\nenvironment: null\ntrainer:\n  steps: 5\n"
    new += "  gradient_accumulation_steps: 2\ncheckpointing:\n  every: 10\n"
    assert opened(tmp_path, new) == []
    assert (tmp_path / "config.yaml").read_text() == new
    with pytest.raises(ValueError, match="prompt_order.kind was shuffle, now weighted"):
        opened(tmp_path, new.replace("shuffle", "weighted"))
