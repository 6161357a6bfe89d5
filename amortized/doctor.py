"""Say what this machine has for training, what is missing, and the command that mends it.

  python -m amortized.doctor                             the machine, and the embedded models
  python -m amortized.doctor configs/quickstart.yaml     and what a run of this preset names

`missing` and `wrong` are said of what is required, `-` of what one can do without. Of the settings only those
that name folders are read, KEY=VALUE included. Exit status: 0 where all that is required is there, 1 where it
is not, 2 where the settings cannot be read.
"""

# What may be missing or broken is imported where it is used: this runs where nothing is installed.
from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from amortized import __version__
from amortized.cli import PRESETS, parser_for, preset_paths

ROOT = PRESETS.parent
GIB = 2**30
NEEDED_GIB = 1  # of disk and of memory: what a process takes before its corpus (docs/scaling.md)
SHOWN = ("python", "torch", "diffusers", "transformers", "open_clip_torch", "safetensors")
OPTIONAL = ("nerfacc", "gsplat", "nvdiffrast", "deepspeed", "wandb", "trackio")
REINSTALL = "pip install --force-reinstall --constraint requirements.lock torch torchvision"
MENDED = {  # otherwise than by pip and the name
    "python": "make doctor PYTHON=python3.12, once .venv is removed",
    "nvdiffrast": "pip install --no-build-isolation git+https://github.com/NVlabs/nvdiffrast",
    "checkpoints/mvdream": "python -m amortized.priors.convert_mvdream --help",
}
PRIOR, CLIP = "prior.path", "evaluation.clip"
CONTENTS = {  # of the folder that a setting names
    PRIOR: [f"{part}/*.safetensors" for part in ("text_encoder", "vae", "unet")]
    + ["tokenizer/*", "scheduler/scheduler_config.json"],
    CLIP: ["open_clip_config.json", "open_clip_model.safetensors"],
}


@dataclass(frozen=True)
class Row:
    """One line of the report; its state is ok, missing, wrong, or - where one can do without."""

    group: str
    name: str
    state: str
    found: str
    mend: str = ""

    @property
    def fails(self) -> bool:
        return self.state in ("missing", "wrong")


@dataclass(frozen=True, kw_only=True)
class Named:
    """The folders and models that the settings of a run name."""

    output: str = "outputs"
    prior: str | None = None
    revision: str | None = None
    allow_network: bool = False
    clip: str | None = None
    shards: tuple[str, ...] = ()


def checked(group: str, name: str, good: bool, found: str, mend: str = "", bad: str = "-") -> Row:
    return Row(group, name, "ok" if good else bad, found, "" if good else mend)


# ---- packages ---------------------------------------------------------------------------------


def import_torch() -> tuple[Any, str]:
    """torch, or None and why not."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a library of CUDA is not found
        return None, str(error).partition("\n")[0]
    return torch, ""


def requirements() -> dict[str, Any]:
    """packaging's Requirement for each name that the installed project asks for, extras included; or none."""
    with suppress(ImportError):  # a PackageNotFoundError is one too
        from packaging.requirements import Requirement

        python = metadata.metadata("amortized3d")["Requires-Python"]
        lines = [f"python{python}", *(metadata.requires("amortized3d") or ())]
        return {wanted.name: wanted for wanted in map(Requirement, lines)}
    return {}


def version_of(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return platform.python_version() if name == "python" else metadata.version(name)


def pip_install(name: str, wanted: Any) -> str:
    extra = re.search(r'extra == "([^"]+)"', str(wanted.marker)) if wanted else None
    asked = f"amortized3d[{extra[1]}]" if extra else f"{name}{wanted.specifier if wanted else ''}"
    return MENDED.get(name) or f'pip install "{asked}"'


def versions(torch: Any, broken: str) -> Iterator[Row]:
    """The main requirements, and those others that are not met."""
    wanted = requirements()
    own = __version__ if wanted else f"{__version__}, not installed: no bounds are known"
    yield checked("versions", "amortized3d", bool(wanted), own, "pip install -e .")
    required = [name for name, w in wanted.items() if not w.marker or w.marker.evaluate({"extra": ""})]
    for name in dict.fromkeys((*SHOWN, *required)):
        version, bounds = version_of(name), wanted[name].specifier if name in wanted else None
        good = version is not None and (not bounds or bounds.contains(version, prereleases=True))
        found = (version or "not installed") + (f" ({bounds})" if bounds else "")
        mend = pip_install(name, wanted.get(name))
        if name == "torch" and good and torch is None:
            good, found, mend = False, f"{found}, cannot be imported: {broken}", REINSTALL
        elif name == "torch" and torch is not None:
            found += f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
        if name in SHOWN or not good:
            yield checked("versions", name, good, found, mend, "wrong" if version else "missing")


def optional(torch: Any) -> Iterator[Row]:
    """What makes runs faster, or adds to them. None of it is imported: a broken CUDA build may crash."""
    wanted = requirements()
    if torch is not None:
        from amortized.encodings import engines

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        engine = engines.engine_on(device, "auto", engines.GPU_FEATURES[0])
        yield Row("optional", "hash grids", "ok", f"looked up by {engine} on {device}")
        for name in engines.PACKAGES:
            found = "installed" if (there := engines.installed(name)) else "not installed"
            yield checked("optional", name, there, found, engines.INSTALL[name])
    for name in OPTIONAL:
        spec = find_spec(name)
        there = spec is not None and spec.origin is not None  # a mere folder `wandb/` has no origin
        found = (version_of(name) or "installed") if there else "not installed"
        yield checked("optional", name, there, found, pip_install(name, wanted.get(name)))
    folder = Path(sys.executable).parent  # of a virtual environment that may not be activated
    ninja = f'export PATH="{folder}:$PATH"' if (folder / "ninja").exists() else "pip install ninja"
    for name, mend in (("g++", "apt-get install g++"), ("ninja", ninja)):
        place = shutil.which(name)
        found = place or "not on PATH; deepspeed compiles with it when it runs"
        yield checked("optional", name, place is not None, found, mend)


# ---- the machine ------------------------------------------------------------------------------


def devices(torch: Any) -> Iterator[Row]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch is None:
        yield Row("devices", "CPU", "ok", f"usable cores: {cores}")
        return
    kind = torch.backends.cpu.get_cpu_capability()
    yield Row("devices", "CPU", "ok", f"usable cores: {cores}, threads: {torch.get_num_threads()}, {kind}")
    if not torch.cuda.is_available():
        # Where there is a driver, either this torch is built without CUDA, or the driver knows why.
        mend = ("nvidia-smi" if torch.version.cuda else REINSTALL) if shutil.which("nvidia-smi") else ""
        yield Row("devices", "CUDA", "-", "no device that torch can use", mend)
    else:
        yield from (gpu(torch, index) for index in range(torch.cuda.device_count()))
    dist = torch.distributed
    for name in ("gloo", "nccl"):
        there = dist.is_available() and getattr(dist, f"is_{name}_available")()
        yield checked("devices", name, there, "in torch" if there else "not in this torch", REINSTALL)


def gpu(torch: Any, index: int) -> Row:
    try:
        has = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        return Row("devices", f"cuda:{index}", "wrong", str(error).partition("\n")[0], "nvidia-smi")
    size = f"{has.total_memory / GIB:.0f} GiB, compute capability {has.major}.{has.minor}"
    bfloat16 = "bfloat16" if has.major >= 8 else "no bfloat16"
    return Row("devices", f"cuda:{index}", "ok", f"{has.name}, {size}, {bfloat16}")


def room(output: str) -> Iterator[Row]:
    """Disk where the run goes, memory, and the memory that processes share."""
    wanted = Path(output).absolute()
    folder = next(place for place in (wanted, *wanted.parents) if os.path.exists(place))
    free, ours = shutil.disk_usage(folder).free / GIB, os.access(folder, os.W_OK)
    found = f"{free:.1f} GiB free in {folder}" + ("" if ours else ", which may not be written to")
    yield checked("room", "disk", ours and free >= NEEDED_GIB, found, "output=FOLDER elsewhere", "wrong")
    free, what = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "in all"
    with suppress(OSError):  # elsewhere than on Linux there is no such file
        if said := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()):
            free, what = int(said[1]) * 1024 / GIB, "free"
    found = f"{free:.1f} GiB {what}"
    yield checked("room", "memory", free >= NEEDED_GIB, found, "fewer processes, or end others", "wrong")
    if os.path.exists("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total / GIB
        # A container has 64 MB unless told otherwise, too little for nccl among GPUs.
        yield checked("room", "/dev/shm", shared >= 1, f"{shared:.2f} GiB", "docker run --shm-size=1g")


# ---- models and texts -------------------------------------------------------------------------


def named_by(words: Sequence[str]) -> Named:
    """What CONFIG, if the first word is one, and KEY=VALUE name. Raises ConfigError.

    Read as written, since a run's own settings include a generator's, which are not known here.
    """
    from amortized.config import build_config
    from amortized.config.presets import parse_overrides, read_presets

    presets = [Path(word) for word in words[:1] if "=" not in word]
    layers = [layer for path in presets for _, layer in read_presets(path)]
    layers += parse_overrides(words[len(presets) :])
    keys = {"output": "output", "prior": PRIOR, "revision": "prior.revision", "clip": CLIP}
    keys |= {"allow_network": "prior.allow_network", "shards": "text.shards"}
    values = {name: setting(layers, key) for name, key in keys.items()}
    return build_config(Named, {name: value for name, value in values.items() if value is not None})


def setting(layers: Iterable[Mapping[str, Any]], key: str) -> Any:
    """The last value that settings as written give a dotted key; None where they give none."""
    found = None
    for value in layers:
        for part in key.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif part != "path":  # `prior: FOLDER` is short for its path
                value = None
        found = found if value is None else value
    return found


def embedded() -> dict[str, str]:
    """The models of checkpoints/ that come with the presets, each with the setting that names it."""
    found: dict[str | None, str] = {}
    for path in preset_paths():
        with suppress(ValueError):  # told to whom it concerns: who trains from that preset
            named = named_by([str(path)])
            found |= {named.prior: PRIOR, named.clip: CLIP}
    ours = {name: key for name, key in found.items() if name and name not in MENDED}
    return {name: key for name, key in ours.items() if name.startswith("checkpoints/")}


def models(named: Named) -> Iterator[Row]:
    """What is named, which is required, and what is embedded, which is where nothing is named."""
    ours = embedded()
    # The embedded ones are files of the repository; an archive or an image has no history to take them from.
    restore = "git checkout -- {}" if (ROOT / ".git").exists() else "make weights"
    asked = [(key, name) for key, name in ((PRIOR, named.prior), (CLIP, named.clip)) if name]
    for key, name in [*asked, *((key, name) for name, key in ours.items() if (key, name) not in asked)]:
        required = (key, name) in asked
        folder = Path(name.removeprefix("local-dir:")) if required else ROOT / name
        own = (".", "/", "checkpoints/", "outputs/", "local-dir:")
        if not folder.is_dir() and name.count("/") == 1 and not name.startswith(own):
            yield published(key, name, named)
            continue
        problem = problem_of(folder, key)
        bad = "-" if asked and not required else "wrong" if folder.is_dir() else "missing"
        mend = restore.format(name) if name in ours else MENDED.get(name, f"{key}=FOLDER")
        label, found = key if required else "embedded", f"{name} {problem or 'is whole'}"
        yield checked("models", label, not problem, found, mend, bad)


def problem_of(folder: Path, key: str) -> str:
    """What is wrong with the folder of a model, or nothing; its numbers are not checked."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        return "is no folder"
    for pattern in CONTENTS[key]:
        files = sorted(folder.glob(pattern))
        if not files:
            return f"has no {pattern}"
        for file in files:
            try:
                if file.suffix == ".safetensors":
                    with safe_open(file, "np"):  # compares the file's length with what its head says
                        pass
            except (SafetensorError, OSError) as error:
                return f"is damaged at {file.relative_to(folder)}: {error}"
    return ""


def published(key: str, name: str, named: Named) -> Row:
    """A model of the Hub, or one of open_clip's ARCHITECTURE/TAG pairs."""
    if key == CLIP:
        return Row("models", key, "-", f"{name} is no folder; the first evaluation fetches it")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "unet/config.json", revision=named.revision)
    if isinstance(cached, str):
        return Row("models", key, "ok", f"{name} is in the Hub's cache")
    if named.allow_network:
        return Row("models", key, "-", f"{name} is no folder; the run fetches it")
    mend = f"hf download {name}" + (f" --revision {named.revision}" if named.revision else "")
    return Row("models", key, "missing", f"{name} is no folder, and not in the Hub's cache", mend)


def texts(shards: Iterable[str]) -> Iterator[Row]:
    for url in shards:
        from amortized.conditioning import ShardStore

        try:
            yield Row("models", "text.shards", "ok", f"{url} holds {len(ShardStore(url).keys):,} prompts")
        except ValueError as error:
            found, _, mend = str(error).partition(": ")
            yield Row("models", "text.shards", "wrong", found, mend)


# ---- the command ------------------------------------------------------------------------------


def as_text(rows: Sequence[Row]) -> str:
    width, lines = max(len(row.name) for row in rows), []
    for group, members in groupby(rows, lambda row: row.group):
        lines.append(group)
        for row in members:
            lines.append(f"  {row.state:<9}{row.name:<{width}}  {row.found}")
            lines += [f"{'':<{width + 13}}{row.mend}"] if row.mend else []
        lines.append("")
    bad = sum(row.fails for row in rows)
    lines.append(f"Required, and not right: {bad}." if bad else "All that is required is there.")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="[CONFIG] [KEY=VALUE ...]", help="a preset, and settings")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("-m amortized.doctor", __doc__)
    add_arguments(parser)
    return run(parser.parse_intermixed_args(argv))


def run(given: argparse.Namespace) -> int:
    """Check as `given` says; returns the exit status."""
    torch, broken = import_torch()
    rows = [*versions(torch, broken), *devices(torch), *optional(torch)]
    try:
        named = named_by(given.words)
        rows += room(named.output)
        rows += models(named)
        rows += texts(named.shards)
    except ImportError as error:
        rows.append(Row("models", "all", "wrong", f"cannot be looked at: {error}", "pip install -e ."))
    except ValueError as error:  # not by one_sentence_errors: it imports all of the training
        print(f"amortized.doctor: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    good = not any(row.fails for row in rows)
    told = json.dumps({"ok": good, "rows": [asdict(row) for row in rows]}, indent=2)
    print(told if given.json else as_text(rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
