"""Checks of packages: the project's requirements, and the optional ones that a run's settings need."""

from __future__ import annotations

import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amortized import __version__
from amortized.doctor.machine import FIXES, Row, make_row, pip_install, reinstall_torch
from amortized.doctor.needs import Needs
from amortized.files import PROJECT

ALWAYS_SHOWN = ("python", "torch", "diffusers", "transformers", "open_clip_torch", "safetensors")
# Optional packages, each with the settings that use it.
OPTIONAL = {
    "deepspeed": "distributed.strategy=zero1 to zero3",
    "wandb": "monitoring.tracker=wandb",
    "trackio": "monitoring.tracker=trackio",
}
# The project's extras for files, each with what uses it.
EXTRAS = {
    "assets": "amortized generate --format glb, ply, obj, stl, 3mf, usdz",
    "usdz": "amortized generate --format usdz",
    "serve": "amortized serve",
}
TESTED = ("Linux", "x86_64")


def requirements() -> dict[str, Any]:
    """Return the project's requirements by name, extras included; {} if it is not installed."""
    with suppress(ImportError):  # a PackageNotFoundError is one too
        from packaging.requirements import Requirement

        python = metadata.metadata("amortized3d")["Requires-Python"]
        lines = [f"python{python}", *(metadata.requires("amortized3d") or ())]
        return {requirement.name: requirement for requirement in map(Requirement, lines)}
    return {}


def version_of(name: str) -> str | None:
    """Return the installed version of a package or of Python; None if it is missing."""
    with suppress(metadata.PackageNotFoundError):
        return platform.python_version() if name == "python" else metadata.version(name)


def install_package(name: str, requirement: Any) -> str:
    """Return the command that installs a package within its bounds."""
    bounded = f"{name}{requirement.specifier}" if requirement else name
    return FIXES.get(name) or pip_install(shlex.quote(bounded))


def install_project() -> str:
    """Return the command that installs this project, which no index has, with its requirements."""
    return pip_install(f"-e {shlex.quote('.' if Path.cwd() == PROJECT else str(PROJECT))}")


def version_rows(torch: Any, torch_error: str) -> Iterator[Row]:
    """Report the platform and the main requirements, and any other that is not met."""
    system = (platform.system(), platform.machine())
    detail = " ".join(system) + (
        "" if system == TESTED else f"; tested on {' '.join(TESTED)} only (README.md)"
    )
    yield make_row("versions", "platform", system == TESTED, detail)
    bounds_of = requirements()
    version = __version__ if bounds_of else f"{__version__}, not installed: version bounds are unknown"
    yield make_row("versions", "amortized3d", bool(bounds_of), version, install_project())
    required = [
        name
        for name, requirement in bounds_of.items()
        if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    ]
    for name in dict.fromkeys((*ALWAYS_SHOWN, *required)):
        version, bounds = version_of(name), bounds_of[name].specifier if name in bounds_of else None
        ok = version is not None and (not bounds or bounds.contains(version, prereleases=True))
        detail = (version or "not installed") + (f" ({bounds})" if bounds else "")
        fix = install_package(name, bounds_of.get(name))
        if name == "torch" and ok and torch is None:
            ok, detail, fix = False, f"{detail}, cannot be imported: {torch_error}", reinstall_torch()
        elif name == "torch" and torch is not None:
            detail += f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
        if name in ALWAYS_SHOWN or not ok:
            yield make_row("versions", name, ok, detail, fix, "wrong" if version else "missing")


def optional_rows(torch: Any, needs: Needs | None = None) -> Iterator[Row]:
    """Report optional packages and tools; those that the settings need are required.

    Only those that would be used have a fix. None is imported, as a broken CUDA build may crash.
    """
    needed = needs.packages if needs else {}
    bounds_of = requirements()
    if torch is not None:
        from amortized.encodings import engines

        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        engine = engines.engine_on(device, "auto", engines.GPU_FEATURES[0])
        yield Row("optional", "hash grids", "ok", f"engine {engine} on {device}")
        for name in engines.PACKAGES:
            version = "installed" if engines.installed(name) else None
            fix = pip_install(engines.INSTALL[name].removeprefix("pip install "))
            # On a GPU, engine=auto takes it.
            yield package_row(name, version, "hash grids on a GPU", fix, needed.get(name), used=on_gpu)
    for name, user in OPTIONAL.items():
        spec = find_spec(name)
        present = spec is not None and spec.origin is not None  # a folder `wandb/` of a run has no origin
        version = (version_of(name) or "installed") if present else None
        yield package_row(name, version, user, install_package(name, bounds_of.get(name)), needed.get(name))
    for extra, user in EXTRAS.items():
        yield from extra_rows(extra, user, bounds_of)
    folder = Path(sys.executable).parent  # that of a virtual environment, even if it is not activated
    ninja = (
        f"export PATH={shlex.quote(str(folder))}:$PATH"
        if (folder / "ninja").exists()
        else pip_install("ninja")
    )
    for name, fix in (("g++", "apt-get install g++"), ("ninja", ninja)):
        yield package_row(name, shutil.which(name), "deepspeed", fix, needed.get("deepspeed"))


def extra_rows(extra: str, user: str, bounds_of: Mapping[str, Any]) -> Iterator[Row]:
    """Report the packages of an extra in one row; none if the project is not installed."""

    def belongs(marker: Any) -> bool:
        return bool(marker) and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})

    versions = {name: version_of(name) for name, required in bounds_of.items() if belongs(required.marker)}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        yield Row("optional", extra, "-", f"without {', '.join(missing)}; used by {user}")
    elif versions:
        yield Row("optional", extra, "ok", ", ".join(f"{name} {v}" for name, v in versions.items()))


def package_row(
    name: str, version: str | None, user: str, fix: str, setting: str | None, *, used: bool = False
) -> Row:
    """Report an optional package or tool, which `user` needs; `setting` does in this run.

    used: it would be used without a setting too.
    """
    if version is not None:
        return Row("optional", name, "ok", version)
    if setting is not None:
        return Row("optional", name, "missing", f"not installed, and {setting} needs it", fix)
    return Row("optional", name, "-", f"not installed; used by {user}", fix if used else "")
