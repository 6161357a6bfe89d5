"""Install the project and the versions of requirements.lock into a virtual environment, as `make` does.

  python3 -m amortized.doctor.install .venv                torch without CUDA if there is no NVIDIA driver
  python3 -m amortized.doctor.install .venv --torch cuda   torch with CUDA

Needs only Python. After an interruption the same command starts again, with the downloads in pip's cache.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

PROJECT = Path(__file__).resolve().parents[2]
LOCK = PROJECT / "requirements.lock"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # for Linux, PyPI has torch with CUDA only
SIZES = {"cpu": (2.1, 0.5), "cuda": (6.9, 3.3)}  # GB on disk and to download, on Linux x86-64
TIMEOUT_S = 10  # for the index to answer
# Files of the environment: one while it is incomplete, the other, with the build of torch, afterwards.
INSTALLING, INSTALLED = ".installing", ".installed"


def install(folder: Path, torch: str = "auto", index: str = TORCH_INDEX) -> None:
    """Install into `folder`, which is created, or updated if it was created here.

    torch: the build, "cpu" or "cuda"; "auto" is "cpu" if there is no NVIDIA driver and `index` has it.

    Raises:
        ValueError: the folder is not ours, the disk is too small, or `index` lacks the build.
        CalledProcessError: venv or pip failed, and printed why.
    """
    start = time.monotonic()
    check_folder(folder)
    # Without its Python: the one that it links to has been removed or upgraded.
    if folder.exists() and ((folder / INSTALLING).exists() or not python_in(folder).exists()):
        print(f"The environment {folder} is incomplete; the installation starts again.", flush=True)
        shutil.rmtree(folder)
    if not folder.exists():
        create(folder)
    build, reason = choose_build(folder, torch, index)
    if build_in(folder) not in (None, build):  # to pip, both builds are the same version
        print(f"Another build of torch: {folder} is created again.", flush=True)
        shutil.rmtree(folder)
        create(folder)
    if build_in(folder) is None:
        disk, download = SIZES[build]
        if (free := shutil.disk_usage(folder).free / 1e9) < disk:
            raise ValueError(f"{folder} needs {disk} GB of disk, but {free:.1f} GB are free: make room first")
        print(f"Installing into {folder}: {disk} GB, of which {download} GB are downloaded, once.")
    else:
        print(f"Updating {folder}.")
    print(f"torch {reason}", flush=True)
    (folder / INSTALLING).touch()
    (folder / INSTALLED).unlink(missing_ok=True)
    install_packages(folder, build, index)
    (folder / INSTALLING).write_text(build, encoding="utf-8")
    os.replace(folder / INSTALLING, folder / INSTALLED)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f"Installed in {minutes} min {seconds} s; {folder} has {size_of(folder) / 1e9:.1f} GB.")


# ---- the environment --------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raise ValueError if the folder exists but was not created here."""
    marked = (folder / INSTALLING).exists() or (folder / INSTALLED).exists()
    if folder.exists() and not marked:
        raise ValueError(f"{folder} was not created by make: remove it, or choose another with VENV=FOLDER")


@contextmanager
def only_installer(folder: Path) -> Iterator[None]:
    """Context: no other process installs beside it. Raises ValueError if one does.

    Locks the parent folder. pip inherits the lock, so that it holds if only the parent process is killed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl

        descriptor = os.open(folder.parent, os.O_RDONLY)
    except ImportError:  # Windows
        yield
        return
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"another process is installing into {folder}: wait until it has finished") from None
    except OSError:  # a network disk without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def create(folder: Path) -> None:
    """Create a virtual environment that counts as incomplete from the start."""
    folder.mkdir(parents=True)
    (folder / INSTALLING).touch()
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, close_fds=False)


def build_in(folder: Path) -> str | None:
    """Return the build of torch in a complete environment; None if it is incomplete."""
    if not (folder / INSTALLED).exists():
        return None
    build = (folder / INSTALLED).read_text(encoding="utf-8").strip()
    return build or "cuda"  # earlier versions installed no other


def python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def size_of(folder: Path) -> int:
    """Return the size of all files below a folder in bytes; links count as links."""
    return sum(path.lstat().st_size for path in folder.rglob("*"))


# ---- the packages -----------------------------------------------------------------------------


def has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def choose_build(folder: Path, torch: str, index: str) -> tuple[str, str]:
    """Return the build of torch to install, and why. Raises ValueError if `index` lacks a requested build."""
    shown = index.replace(f"{urlsplit(index).netloc.rpartition('@')[0]}@", "")  # without a password
    if torch == "cuda" or sys.platform != "linux":  # elsewhere PyPI's torch is the one without CUDA
        return "cuda", "comes from PyPI."
    if torch == "auto" and has_nvidia_driver():
        return "cuda", "comes with CUDA, since there is an NVIDIA driver."
    if has_build(folder, index):
        return "cpu", f"comes without CUDA, from {shown} (make install TORCH=cuda for the other build)."
    if torch == "cpu":
        raise ValueError(
            f"{shown} cannot be reached or lacks torch {locked('torch')} without CUDA: "
            "set TORCH_INDEX=URL, or TORCH=cuda for PyPI's build"
        )
    return "cuda", f"comes with CUDA, from PyPI: {shown} cannot be reached or lacks {locked('torch')}+cpu."


def has_build(folder: Path, index: str) -> bool:
    """Return whether an index has the locked torch and torchvision without CUDA, for this Python."""
    for name in ("torch", "torchvision"):
        words = ["index", "versions", name, "--index-url", index, "--retries", "0", "--timeout", TIMEOUT_S]
        done = pip(folder, *map(str, words), quiet=True)
        if f"{locked(name)}+cpu" not in re.split(r"[\s,()]+", done.stdout):
            return False
    return True


def locked(name: str) -> str:
    """Return a package's version in the lock."""
    return re.search(rf"(?m)^{name}==(\S+)", LOCK.read_text(encoding="utf-8"))[1]  # type: ignore[index]


def install_packages(folder: Path, build: str, index: str) -> None:
    """Install the project in place, with the requirements that it has on this platform, as locked.

    The lock only constrains versions: what torch requires depends on its build.
    """
    if build == "cpu":
        names = [f"{name}=={locked(name)}" for name in ("torch", "torchvision")]
        pip(folder, "install", "--no-deps", "--index-url", index, *names)
    # The project is built with the locked setuptools, so that comes first.
    pip(folder, "install", "--quiet", "--constraint", str(LOCK), "setuptools")
    pip(folder, "install", "--constraint", str(LOCK), "--no-build-isolation", "--editable", f"{PROJECT}[dev]")


def pip(folder: Path, *words: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run pip in an environment. Raises CalledProcessError if it fails, unless it is quiet."""
    command = [python_in(folder), "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(
        command, check=not quiet, capture_output=quiet, text=True, encoding="utf-8", close_fds=False
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m amortized.doctor.install",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="the virtual environment, such as .venv")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto", help="the build of torch")
    parser.add_argument("--torch-index", default=TORCH_INDEX, metavar="URL", help="of torch without CUDA")
    args = parser.parse_args(argv)
    try:
        with only_installer(args.folder):
            install(args.folder, args.torch, args.torch_index)
    except (ValueError, OSError) as error:
        print(f"install: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(
            f"install: error: {Path(error.cmd[0]).name} failed with status {error.returncode}, see above; "
            "the same command starts again",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("install: interrupted; the same command starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
