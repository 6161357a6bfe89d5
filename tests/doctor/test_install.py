"""The installer: which torch it takes, what an interruption leaves, and folders that are not its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from amortized.doctor import install as installer

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = "cpu", "cuda"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Simulate venv and pip on a machine without a GPU; the last word of each call, in order."""
    done: list[str] = []

    def run(command: list, **options) -> None:  # python -m venv FOLDER
        done.append("venv")
        python = installer.python_in(Path(command[-1]))
        python.parent.mkdir(parents=True)
        python.touch()

    def pip(folder: Path, *words: str) -> None:
        assert installer.python_in(folder).exists() and (folder / installer.INSTALLING).exists()
        done.append(words[-1])

    monkeypatch.setattr(installer.subprocess, "run", run)
    monkeypatch.setattr(installer, "pip", pip)
    monkeypatch.setattr(installer, "has_build", lambda folder, index: True)
    monkeypatch.setattr(installer, "has_nvidia_driver", lambda: False)
    return done


# ---- the build of torch -----------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("driver", [False, True])
@pytest.mark.parametrize("offered", [False, True])
@pytest.mark.parametrize("choice", ["auto", "cpu", "cuda"])
def test_build(choice: str, offered: bool, driver: bool, platform: str, monkeypatch) -> None:
    monkeypatch.setattr(installer.sys, "platform", platform)
    monkeypatch.setattr(installer, "has_nvidia_driver", lambda: driver)
    monkeypatch.setattr(installer, "has_build", lambda folder, index: offered)
    wants_cpu = platform == "linux" and (choice == "cpu" or (choice == "auto" and not driver))
    if wants_cpu and choice == "cpu" and not offered:
        with pytest.raises(ValueError, match="TORCH_INDEX=URL, or TORCH=cuda"):
            installer.choose_build(Path(), choice, "https://example.com/whl")
        return
    build, sentence = installer.choose_build(Path(), choice, "https://user:secret@example.com/whl")
    assert build == (CPU if wants_cpu and offered else CUDA)
    assert "secret" not in sentence and sentence.count("\n") == 0
    assert ("https://example.com/whl" in sentence) == wants_cpu  # an index that was tried is named


@pytest.fixture
def this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the real pip of the tests look into indexes, without the machine's own configuration."""
    monkeypatch.setattr(installer, "python_in", lambda folder: Path(sys.executable))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def index_with(folder: Path, builds: dict[str, str]) -> str:
    """A package index in a folder, whose wheels exist only as names."""
    for name, version in builds.items():
        (folder / name).mkdir(parents=True)
        wheel = f"{name}-{version}-py3-none-any.whl"
        (folder / name / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    return folder.as_uri()


def test_an_index_is_searched_for_the_locked_versions(tmp_path: Path, this_environment) -> None:
    torch, vision = installer.locked("torch"), installer.locked("torchvision")
    complete = {"torch": f"{torch}+cpu", "torchvision": f"{vision}+cpu"}
    assert installer.has_build(tmp_path, index_with(tmp_path / "complete", complete))
    longer = {"torchvision": f"{vision}0+cpu"}
    assert not installer.has_build(tmp_path, index_with(tmp_path / "other", complete | longer))


def test_an_index_that_refuses_or_does_not_exist_is_given_up_quickly(
    tmp_path: Path, this_environment
) -> None:
    start = time.monotonic()
    for index in ("http://127.0.0.1:9/whl/cpu", "https://no-such-host.invalid/whl"):
        assert not installer.has_build(tmp_path, index)
    assert time.monotonic() - start < 2 * installer.TIMEOUT_S


def test_the_lock_accepts_torch_without_cuda(tmp_path: Path, this_environment) -> None:
    """With the CPU build installed, pip looks for no other, although the lock names no build (PEP 440)."""
    for name in ("torch", "torchvision"):
        version = f"{installer.locked(name)}+cpu"
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / "METADATA").write_text(text + ("Requires-Dist: torch\n" if name == "torchvision" else ""))
    bounds = [line for line in re.findall(r'"(torch\S*)"', (ROOT / "pyproject.toml").read_text())]
    command = [sys.executable, "-S", "-m", "pip", "install", "--dry-run", "--no-index"]
    pip_folder = next(path for path in sys.path if (Path(path) / "pip").is_dir())
    done = subprocess.run(
        [*command, "--constraint", str(installer.LOCK), *bounds],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{pip_folder}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert len(bounds) == 2 and done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout and done.stdout.count("already satisfied") >= 2


# ---- the folder -------------------------------------------------------------------------------


def test_install_update_and_change_of_build(tmp_path: Path, calls, capsys) -> None:
    folder = tmp_path / "venv"
    installer.install(folder)
    assert installer.build_in(folder) == CPU and not (folder / installer.INSTALLING).exists()
    assert calls[0] == "venv" and calls[-1].endswith("[dev]") and "+" not in " ".join(calls)
    assert "2.1 GB, of which 0.5 GB are downloaded" in capsys.readouterr().out
    calls.clear()
    installer.install(folder)
    assert "venv" not in calls and "Updating" in capsys.readouterr().out
    installer.install(folder, CUDA)
    assert calls.count("venv") == 1 and installer.build_in(folder) == CUDA


@pytest.mark.parametrize("step", range(4))  # venv, and three calls of pip
@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (subprocess.CalledProcessError(1, ["pip"]), 1), (OSError(28, "full"), 2)],
)
def test_an_interrupted_installation_starts_again(step, error, status, tmp_path, calls, monkeypatch) -> None:
    """Wherever it stops, nothing counts as installed, and no partial package is used again."""
    folder = tmp_path / "venv"

    def failing(original):
        def call(*args, **options):
            if len(calls) == step:
                raise error
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(installer, "pip", failing(installer.pip))
        patch.setattr(installer.subprocess, "run", failing(installer.subprocess.run))
        assert installer.main([str(folder)]) == status
    assert installer.build_in(folder) is None
    (folder / "partial").touch()
    calls.clear()
    installer.install(folder)
    assert calls[0] == "venv" and not (folder / "partial").exists()
    assert installer.build_in(folder) == CPU


def test_an_environment_whose_python_was_removed_is_created_again(tmp_path: Path, calls) -> None:
    folder = tmp_path / "venv"
    installer.install(folder)
    installer.python_in(folder).unlink()
    installer.install(folder)
    assert calls.count("venv") == 2


def test_folders_of_others_are_refused_and_stay(tmp_path: Path, calls, capsys) -> None:
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "mine").touch()
    assert installer.main([str(folder)]) == 2
    assert "was not created by make" in capsys.readouterr().err and (folder / "mine").exists()


def test_two_installations_at_once(tmp_path: Path, calls, capsys) -> None:
    """pip holds the lock too, as it may outlive the installer that started it."""
    folder = tmp_path / "venv"
    with installer.only_installer(folder):
        pip = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        assert installer.main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert "another process is installing" in error and error.count("\n") == 1 and not calls
    finally:
        pip.kill()
        pip.wait()
    assert installer.main([str(folder)]) == 0 and installer.build_in(folder) == CPU


def test_too_small_a_disk_is_reported_before_the_download(tmp_path: Path, calls, monkeypatch, capsys) -> None:
    usage = SimpleNamespace(free=10**9)
    monkeypatch.setattr(installer.shutil, "disk_usage", lambda path: usage)
    assert installer.main([str(tmp_path / "venv")]) == 2
    assert "2.1 GB of disk, but 1.0 GB are free" in capsys.readouterr().err and calls == ["venv"]
