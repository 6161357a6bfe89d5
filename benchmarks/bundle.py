"""Bundle the wheels that a bare GPU machine without a package index lacks, to be copied there with the code.

    python -m benchmarks.bundle download    into gpu-bundle/wheels; fails if wheels and code are too large
    python -m benchmarks.bundle install     unpack the missing packages into gpu-bundle/site

Such a machine has Python 3.12 on x86-64 Linux, a CUDA build of PyTorch, and most packages that depend on it
(transformers, timm, peft, scipy, pillow, pytest and so on). Standard library only.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS, SITE = ROOT / "gpu-bundle" / "wheels", ROOT / "gpu-bundle" / "site"
LIMIT = 64 * 2**20  # bytes, code included
# Distribution: the module that it installs. Versions come from requirements.lock.
PACKAGES = {
    "diffusers": "diffusers",  # the denoiser and the VAE
    "open-clip-torch": "open_clip",  # the judge, and CLIP's vocabulary
    "ftfy": "ftfy",  # for open_clip
    "wcwidth": "wcwidth",  # for ftfy
    "datasketch": "datasketch",  # finds an evaluation's near-duplicates
}
# Left out: av (35 MB), needed only for turntables, which evaluation.turntable_frames=0 turns off. deepspeed
# and tiny-cuda-nn are optional and compile on the machine; the tests that need them are skipped.
TARGET = ("--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def locked(names: list[str]) -> list[str]:
    """Return NAME==VERSION of each, from requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
    return [f"{name}=={pins[name]}" for name in names]


def missing() -> list[str]:
    """Return the distributions that cannot be imported, gpu-bundle/site included in the search."""
    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    importlib.invalidate_caches()
    return [name for name, module in PACKAGES.items() if find_spec(module) is None]


def wheel_of(name: str) -> Path | None:
    """Return the downloaded wheel of a distribution, or None."""
    pattern = re.sub(r"[-_.]+", "_", name)
    return next(iter(sorted(WHEELS.glob(f"{pattern}-*.whl"))), None)


def download() -> int:
    """Download the wheels and print their size with the code; returns 1 if it is too large."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    # No dependencies: the machine has all packages that PACKAGES does not name.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *TARGET, *platforms]
    subprocess.run([*command, "--dest", str(WHEELS), *locked(list(PACKAGES))], check=True)
    sizes = {path.name: path.stat().st_size for path in sorted(WHEELS.glob("*.whl"))}
    code = code_bytes()
    for name, size in {**sizes, "the code": code}.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    total = sum(sizes.values()) + code
    print(f"{total / 2**20:8.2f} MiB  in total, of {LIMIT / 2**20:.0f} allowed")
    if total > LIMIT:
        print("error: the bundle is too large; shorten PACKAGES in benchmarks/bundle.py", file=sys.stderr)
    return int(total > LIMIT)


def code_bytes() -> int:
    """Return the size of the working tree's files that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def install() -> int:
    """Unpack missing packages; return 1, with an error message, if some are still missing."""
    wheels = [str(wheel) for name in missing() if (wheel := wheel_of(name)) is not None]
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--target", str(SITE), *wheels], check=True)
    if still_missing := missing():
        print(
            f"error: {', '.join(still_missing)} cannot be imported and gpu-bundle/wheels lacks them: run "
            "'make gpu-bundle' on a machine with a package index, and copy the folder here",
            file=sys.stderr,
        )
    return int(bool(still_missing))


if __name__ == "__main__":
    ACTIONS = {"download": download, "install": install}
    USAGE = f"usage: python -m benchmarks.bundle {'|'.join(ACTIONS)}"
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(f"{USAGE}\n\n{__doc__}")
        sys.exit(0)
    if len(sys.argv) != 2 or sys.argv[1] not in ACTIONS:
        sys.exit(USAGE)
    sys.exit(ACTIONS[sys.argv[1]]())
