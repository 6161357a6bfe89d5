"""A run's folder: created, resumed, used by one run at a time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from amortized import locks
from amortized.checkpointing import open_run, run_folder
from amortized.checkpointing.settings import RESUMABLE_SETTINGS, flat_settings
from amortized.commands.compose import RunConfig
from amortized.config import config_to_yaml, load_config
from amortized.config.renamed import RENAMED_RUN_SETTINGS, rename_keys
from amortized.parallel import World

CONFIG = "seed: 0\ntrainer:\n  steps: 5\n  log_every: 1\n"


def opened(folder, config=CONFIG, **options) -> list[str]:
    """Open a run's folder and close it; returns the messages to log."""
    with open_run(folder, config, World(), **options) as messages:
        return messages


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
    (message,) = opened(folder, other, resume="changed")
    assert message == (
        "resuming with changed settings: seed was 0, now 1; trainer.steps was 5, now 6; "
        "monitoring.log_every was 1, now 2"
    )
    assert (folder / "config.yaml").read_text() == other


def test_other_settings_may_change(tmp_path):
    opened(tmp_path)
    other = CONFIG.replace("log_every: 1", "log_every: 7") + "distributed:\n  strategy: fsdp2\n"
    (message,) = opened(tmp_path, other)
    assert (
        "monitoring.log_every was 1, now 7" in message
        and "distributed.strategy was unset, now fsdp2" in message
    )
    assert (tmp_path / "config.yaml").read_text() == other


def test_resumable_settings_exist():
    """Each is a key or a section of a run's config, with one generator or another."""
    known: set[str] = set()
    for generator in ("hyper-ingp", "3dconv-net", "triplane-transformer"):
        overrides = ["output=o", "corpus=c", "prior=p", f"generator.name={generator}"]
        known |= set(flat_settings(config_to_yaml(load_config(RunConfig, None, overrides))))
    for name in RESUMABLE_SETTINGS:
        assert any(key == name or key.startswith(f"{name}.") for key in known), name


@pytest.mark.parametrize(("new", "changes"), [("null", False), ("[1, 4]", True), ("false", True)])
def test_a_setting_that_an_earlier_version_lacked_is_null(tmp_path, new, changes):
    opened(tmp_path, "seed: 1\ngenerator: {grid: {num_levels: 4}}\n")
    later = f"seed: 1\ngenerator: {{grid: {{num_levels: 4, open_levels: {new}}}}}\n"
    if changes:
        with pytest.raises(ValueError, match="generator.grid.open_levels was unset, now"):
            opened(tmp_path, later)
    else:
        assert opened(tmp_path, later) == []


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
    holder.kill()  # the process cannot clean up: the operating system releases the lock
    holder.wait()
    assert opened(tmp_path, "seed: 0") == []
    assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()


def test_a_message_if_the_folder_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    (message,) = opened(tmp_path)
    assert message.endswith("(No locks available): make sure that no other run writes there")


PREVIOUS_RELEASE = """
surroundings: {name: hash, hidden: 7}
order: {kind: curriculum, start: 0.3}
background: {kind: random-grey, colour: [0.1, 0.2, 0.3], own_share: 0.4}
evaluation: {own_background: false, gallery: asked}
text: {kept: 5}
optimizer: {final_share: 0.6, surroundings_learning_rate: 0.7}
trainer:
  steps: 50
  accumulation: 2
  checkpoint_every: 8
  keep_checkpoints: 9
  keep_every: 10
  best_by: loss
  upload: "s3://bucket/run"
  log_every: 11
  tracker: wandb
  profile: [12, 13]
  preview_every: 14
  preview_prompts: 15
  min_opacity: 0.16
  max_opacity: 0.17
  patience: 18
"""
THIS_RELEASE = """
environment: {name: hash, hidden: 7}
prompt_order: {kind: curriculum, start: 0.3}
background: {kind: random-gray, color: [0.1, 0.2, 0.3], environment_share: 0.4}
evaluation: {show_environment: false, gallery: prompts}
text: {cache_size: 5}
optimizer: {min_lr_ratio: 0.6, environment_learning_rate: 0.7}
trainer: {steps: 50, gradient_accumulation_steps: 2}
checkpointing: {every: 8, keep: 9, keep_every: 10, best_by: loss, upload: "s3://bucket/run"}
monitoring:
  log_every: 11
  tracker: wandb
  profile: [12, 13]
  preview_every: 14
  preview_prompts: 15
  min_opacity: 0.16
  max_opacity: 0.17
  patience: 18
"""


def test_a_run_of_the_previous_release_resumes_under_its_old_keys(tmp_path):
    """A renamed key is not a changed setting; only a value that differs is reported."""
    assert opened(tmp_path, PREVIOUS_RELEASE) == []
    assert opened(tmp_path, THIS_RELEASE, resume="auto") == []
    assert (tmp_path / "config.yaml").read_text() == THIS_RELEASE
    opened(tmp_path / "other", PREVIOUS_RELEASE)
    with pytest.raises(ValueError, match=r"\(prompt_order.kind was curriculum, now weighted\)"):
        opened(tmp_path / "other", THIS_RELEASE.replace("curriculum", "weighted"))
    (message,) = opened(tmp_path / "other", THIS_RELEASE.replace("every: 8", "every: 80"))
    assert message == "resuming with changed settings: checkpointing.every was 8, now 80"


def test_old_keys_load_as_the_same_config(tmp_path):
    """The two configs above use every renamed key, and each loads under its new name."""
    used = {old for old, _ in rename_keys(yaml.safe_load(PREVIOUS_RELEASE), RENAMED_RUN_SETTINGS)[1]}
    assert used == set(RENAMED_RUN_SETTINGS)
    configs = []
    for text in (PREVIOUS_RELEASE, THIS_RELEASE):
        (tmp_path / "config.yaml").write_text(text)
        required = ["output=o", "corpus=c", "prior=p"]
        configs.append(load_config(RunConfig, tmp_path / "config.yaml", required))
    assert configs[0] == configs[1]
    known = flat_settings(config_to_yaml(configs[1]))
    for new in (new.partition("=")[0] for new in RENAMED_RUN_SETTINGS.values()):
        assert any(key == new or key.startswith(f"{new}.") for key in known), new
