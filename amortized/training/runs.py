"""A run's folder: made, gone on in, and held by one run at a time."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from amortized.files import atomic_write_text
from amortized.training.distributed import World
from amortized.training.watch import STOPPED

Resume = Literal["auto", "never", "changed"]

# Settings that a run may change without becoming another one: where and how it computes, and what it tells.
# Another size of a step's batch goes on in the same order of prompts. Weights of the prior are compared.
FREE = {
    "output", "device", "distributed", "evaluation", "text.shards", "text.kept",
    "generator.checkpointing", "generator.compile", "generator.grid.engine", "renderer.chunk",
    *(f"prior.{key}" for key in "path revision allow_network denoiser_device offload text_on_cpu "
      "compile".split()),
    *(f"trainer.{key}" for key in "prompts_per_process accumulation checkpoint_every keep_checkpoints "
      "keep_every best_by upload log_every tracker profile preview_every preview_prompts min_opacity "
      "max_opacity patience".split()),
}  # fmt: skip
HELD_FOR_S = 15.0  # how long a run that is just ending may still hold its folder


@contextmanager
def open_run(folder: Path, config_yaml: str, world: World, *, resume: Resume = "auto") -> Iterator[list[str]]:
    """Make the folder with its config.yaml, or go on in one; held within against other runs.

    All processes call it; yields what there is to say. `resume` is auto (go on with the run that the folder
    holds, if it does), never, or changed (go on, whatever settings have changed). The newest config is kept.
    Raises ValueError on all processes where another run holds the folder, where it holds a run and `resume`
    is never, or where a setting that makes a run what it is has changed.
    """
    lock: list[IO[str]] = []
    try:
        told = world.together(lambda: _open(folder, config_yaml, resume, lock) if world.is_main else [])
        yield told[0]
    finally:
        for file in lock:
            file.close()


def _open(folder: Path, config_yaml: str, resume: Resume, lock: list[IO[str]]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    told = _hold(folder, lock)
    stored = folder / "config.yaml"
    if stored.exists():
        if resume == "never":
            raise ValueError(
                f"{folder} already holds a run: go on with it (--resume auto) or choose another output=FOLDER"
            )
        changed = differences(stored.read_text(), config_yaml)
        lasting = [text for key, text in changed.items() if not _is_free(key)]
        if lasting and resume == "auto":
            raise ValueError(
                f"{folder} holds a run with other settings ({_listed(lasting)}): give the same ones to "
                "continue it, choose another output=FOLDER, or go on with these by --resume changed"
            )
        if changed:
            told.append(f"the run goes on with other settings: {_listed(list(changed.values()))}")
    why = folder / STOPPED
    if why.exists():
        if resume == "auto":
            raise ValueError(
                f"{folder} holds a run that stopped, and would again ({why.read_text().strip()}): "
                "change what it names and go on by --resume changed"
            )
        why.unlink()
    atomic_write_text(stored, config_yaml)
    return told


def _hold(folder: Path, lock: list[IO[str]]) -> list[str]:
    """Hold the folder as long as the file in `lock` is open: the system lets go of it when a process dies."""
    file = (folder / ".lock").open("a+")
    lock.append(file)
    until = time.monotonic() + HELD_FOR_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                file.seek(0)
                raise ValueError(
                    f"{folder} is in use by another run ({file.read().strip() or 'which is just starting'}): "
                    "wait for its end, or choose another output=FOLDER"
                ) from None
            time.sleep(0.2)
        except OSError as error:
            return [f"{folder} cannot be locked ({error.strerror}): see to it that no other run writes there"]
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return []


def differences(old_yaml: str, new_yaml: str) -> dict[str, str]:
    """What differs between two configs, by dotted key: "KEY was A, now B"."""
    old, new = (_dotted(yaml.safe_load(text)) for text in (old_yaml, new_yaml))
    keys = [key for key in {**old, **new} if old.get(key, "unset") != new.get(key, "unset")]
    return {key: f"{key} was {old.get(key, 'unset')}, now {new.get(key, 'unset')}" for key in keys}


def _dotted(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value
        for name, inner in data.items()
        for key, value in _dotted(inner, f"{prefix}.{name}" if prefix else name).items()
    }


def _is_free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in FREE for length in range(1, len(parts) + 1))


def _listed(texts: list[str]) -> str:
    shown = "; ".join(texts[:6])
    return shown if len(texts) <= 6 else f"{shown}; and {len(texts) - 6} more"
