"""What a bare GPU machine without a package index lacks, as wheels that travel with the code.

    python -m benchmarks.bundle download    into gpu-bundle/wheels; fails if it and the code are too large
    python -m benchmarks.bundle install     into gpu-bundle/site, what cannot be imported there already

Such a machine has Python 3.12 on x86-64 Linux, a CUDA build of PyTorch, and most of what is built upon it
(transformers, timm, peft, scipy, pillow, imageio, rich, pytest and so on). Standard library only.
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
LIMIT = 64 * 2**20  # bytes, the code's with them
# Distribution: the module by which it is known. Their versions are requirements.lock's.
PACKAGES = {
    "diffusers": "diffusers",  # the denoiser and the VAE
    "open-clip-torch": "open_clip",  # the judge, and CLIP's vocabulary
    "ftfy": "ftfy",  # of open_clip
    "wcwidth": "wcwidth",  # of ftfy
    "datasketch": "datasketch",  # an evaluation's near-duplicates
}
# Left out: av (35 MB), which writes turntables alone: evaluation.turntable_frames=0 does without. deepspeed,
# gsplat, nerfacc and tiny-cuda-nn are optional, and built on the machine: what needs them is skipped.
TARGET = ("--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def locked(names: list[str]) -> list[str]:
    """NAME==VERSION of each, as requirements.lock has it."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
    return [f"{name}=={pins[name]}" for name in names]


def missing() -> list[str]:
    """Distributions that cannot be imported, those in gpu-bundle/site counted as there."""
    if str(SITE) not in sys.path:
        sys.path.append(str(SITE))
    importlib.invalidate_caches()
    return [name for name, module in PACKAGES.items() if find_spec(module) is None]


def wheel_of(name: str) -> Path | None:
    """The downloaded wheel of a distribution."""
    pattern = re.sub(r"[-_.]+", "_", name)
    return next(iter(sorted(WHEELS.glob(f"{pattern}-*.whl"))), None)


def download() -> int:
    """Download the wheels and print their size with the code; returns 1 if it is too large."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    # No dependencies: what is in no list here is on the machine.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *TARGET, *platforms]
    subprocess.run([*command, "--dest", str(WHEELS), *locked(list(PACKAGES))], check=True)
    sizes = {path.name: path.stat().st_size for path in sorted(WHEELS.glob("*.whl"))}
    code = code_bytes()
    for name, size in {**sizes, "the code": code}.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    total = sum(sizes.values()) + code
    print(f"{total / 2**20:8.2f} MiB  together, of {LIMIT / 2**20:.0f}")
    if total > LIMIT:
        print("error: that is too large to travel; shorten PACKAGES in benchmarks/bundle.py", file=sys.stderr)
    return int(total > LIMIT)


def code_bytes() -> int:
    """Files of the working tree that git does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def install() -> int:
    """Unpack missing packages; prints and returns 1 if some are still missing."""
    wheels = [str(wheel) for name in missing() if (wheel := wheel_of(name)) is not None]
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--target", str(SITE), *wheels], check=True)
    if left := missing():
        print(
            f"error: {', '.join(left)} cannot be imported, and gpu-bundle/wheels does not have them: run "
            "'make gpu-bundle' on a machine with a package index, and copy the folder here",
            file=sys.stderr,
        )
    return int(bool(left))


if __name__ == "__main__":
    ACTIONS = {"download": download, "install": install}
    if len(sys.argv) != 2 or sys.argv[1] not in ACTIONS:
        sys.exit(f"usage: python -m benchmarks.bundle {'|'.join(ACTIONS)}")
    sys.exit(ACTIONS[sys.argv[1]]())
