"""Checks of the machine: devices, disk and memory. Without PyTorch, the other checks still run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.doctor.needs import Needs
from amortized.files import PROJECT

GIB = 2**30
NEEDED_GIB = 1  # of disk and of memory: the use of a process without its corpus (docs/scaling.md)
FIXES = {  # instead of pip install NAME
    "python": "make install PYTHON=python3.12, once .venv is removed",
    "checkpoints/mvdream": "amortized convert mvdream --help",
}


@dataclass(frozen=True)
class Row:
    """One line of the report. State: ok, missing, wrong, or - if something optional is absent."""

    group: str
    name: str
    state: str
    detail: str  # a version, a size, a path, or the problem
    fix: str = ""  # a command or setting, if there is a problem

    @property
    def fails(self) -> bool:
        return self.state in ("missing", "wrong")


def make_row(group: str, name: str, ok: bool, detail: str, fix: str = "", otherwise: str = "-") -> Row:
    """Return a row: ok without a fix, or the state `otherwise` with the fix."""
    return Row(group, name, "ok" if ok else otherwise, detail, "" if ok else fix)


# ---- commands that fix -------------------------------------------------------------------------


def pip_install(words: str) -> str:
    """Return the command that installs into this environment, whether or not it is activated."""
    python = Path(sys.executable)
    if shutil.which("pip") == str(python.with_name("pip")):
        return f"pip install {words}"
    here = Path.cwd()
    shown = python.relative_to(here) if python.is_relative_to(here) else python
    return f"{shlex.quote(str(shown))} -m pip install {words}"


def reinstall_torch() -> str:
    """Return the command that installs PyPI's torch, which has CUDA on Linux, in the locked version."""
    lock = PROJECT / "requirements.lock"
    bounds = f"--constraint {shlex.quote(str(lock))} " if lock.exists() else ""
    return pip_install(f"--force-reinstall {bounds}torch torchvision")


# ---- devices -----------------------------------------------------------------------------------


def import_torch() -> tuple[Any, str]:
    """Return the torch module and "", or None and the error."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a CUDA library is missing
        return None, str(error).partition("\n")[0]
    return torch, ""


def device_rows(torch: Any, needs: Needs | None = None) -> Iterator[Row]:
    """Report CPU, GPUs and communication backends. A GPU is required if the settings need one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch is None:
        yield Row("devices", "CPU", "ok", f"usable cores: {cores}")
        return
    kind = torch.backends.cpu.get_cpu_capability()
    yield Row("devices", "CPU", "ok", f"usable cores: {cores}, threads: {torch.get_num_threads()}, {kind}")
    yield from cuda_rows(torch, needs.devices if needs else {})
    dist = torch.distributed
    for name in ("gloo", "nccl"):
        present = dist.is_available() and getattr(dist, f"is_{name}_available")()
        detail = "in torch" if present else "not in this torch"
        # NCCL connects GPUs only.
        fix = reinstall_torch() if name == "gloo" or torch.cuda.is_available() else ""
        yield make_row("devices", name, present, detail, fix)


def cuda_rows(torch: Any, needed: Mapping[str, str]) -> Iterator[Row]:
    """Report the GPUs, and each device in `needed` (with the setting that names it) that does not exist."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield from (gpu_row(torch, index) for index in range(count))
    if not count:
        # With a driver, either this torch is built without CUDA, or nvidia-smi reports the problem.
        driver = shutil.which("nvidia-smi") is not None
        fix = ("nvidia-smi" if torch.version.cuda else reinstall_torch()) if driver else ""
        yield Row("devices", "CUDA", "-", "no device that torch can use", fix)
    for name, setting in needed.items():
        _, _, index = name.partition(":")
        if not count or (index.isdecimal() and int(index) >= count):
            key = setting.partition("=")[0]
            fix = f"{key}={'null' if key == 'prior.denoiser_device' else 'auto'}, or a machine that has it"
            yield Row("devices", name, "missing", f"{setting} needs it", fix)


def gpu_row(torch: Any, index: int) -> Row:
    """Report a GPU's name, memory and compute capability."""
    try:
        device = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        return Row("devices", f"cuda:{index}", "wrong", str(error).partition("\n")[0], "nvidia-smi")
    size = f"{device.total_memory / GIB:.0f} GiB, compute capability {device.major}.{device.minor}"
    bfloat16 = "bfloat16" if device.major >= 8 else "no bfloat16"
    return Row("devices", f"cuda:{index}", "ok", f"{device.name}, {size}, {bfloat16}")


def storage_rows(output: str) -> Iterator[Row]:
    """Report free disk space at the run's output, free memory and shared memory."""
    target = Path(output).absolute()
    folder = next(path for path in (target, *target.parents) if os.path.exists(path))
    free, writable = shutil.disk_usage(folder).free / GIB, os.access(folder, os.W_OK)
    detail = f"{free:.1f} GiB free in {folder}" + ("" if writable else ", which is not writable")
    yield make_row(
        "storage", "disk", writable and free >= NEEDED_GIB, detail, "output=FOLDER elsewhere", "wrong"
    )
    if hasattr(os, "sysconf"):  # not on Windows
        free, scope = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "in total"
        with suppress(OSError):  # the file exists on Linux only
            if match := re.search(
                r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8")
            ):
                free, scope = int(match[1]) * 1024 / GIB, "free"
        fix = "run fewer processes, or end others"
        yield make_row("storage", "memory", free >= NEEDED_GIB, f"{free:.1f} GiB {scope}", fix, "wrong")
    if os.path.exists("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total / GIB
        # A container has 64 MB by default, too little for NCCL between GPUs.
        yield make_row("storage", "/dev/shm", shared >= 1, f"{shared:.2f} GiB", "docker run --shm-size=1g")
