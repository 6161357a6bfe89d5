"""A run's folder: created or resumed, and locked against other runs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from amortized.config.presets import flatten
from amortized.config.renamed import RENAMED_RUN_SETTINGS, rename_keys
from amortized.files import atomic_write_text
from amortized.parallel import World

Resume = Literal["auto", "never", "changed"]

STOP_FILE = "stopped"  # in a run's folder: why it stopped, if the same steps would stop there again

# Settings that may change on resume: where and how a run computes, and what it reports. A different batch
# size continues in the same prompt order. The prior's weights are compared by fingerprint instead.
RESUMABLE_SETTINGS = {
    "output",
    "device",
    "distributed",
    "evaluation",
    "checkpointing",
    "monitoring",
    "text.shards",
    "text.cache_size",
    "generator.checkpointing",
    "generator.compile",
    "generator.grid.engine",
    "renderer.chunk",
    "trainer.prompts_per_process",
    "trainer.gradient_accumulation_steps",
    "prior.path",
    "prior.revision",
    "prior.allow_network",
    "prior.denoiser_device",
    "prior.offload",
    "prior.text_on_cpu",
    "prior.compile",
    "prior.graphs",
}
LOCK_TIMEOUT_S = 15.0  # for a run that is just ending to release its folder


@contextmanager
def open_run(
    folder: Path,
    config_yaml: str,
    world: World,
    *,
    resume: Resume = "auto",
) -> Iterator[list[str]]:
    """Context: a run's folder with its config.yaml, created or resumed, locked against other runs.

    Collective; yields messages to log. `resume` is auto (resume if the folder holds a run), never, or
    changed (resume even if settings differ). The folder always has the newest config.

    Raises ValueError on all ranks if another run holds the lock, if the folder holds a run and `resume` is
    never, or if a setting that defines the run has changed.
    """
    lock: list[IO[str]] = []
    try:
        messages = world.run_on_all(lambda: _open(folder, config_yaml, resume, lock) if world.is_main else [])
        yield messages[0]
    finally:
        for file in lock:
            file.close()


def _open(folder: Path, config_yaml: str, resume: Resume, lock: list[IO[str]]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    messages = _lock(folder, lock)
    stored = folder / "config.yaml"
    if stored.exists():
        if resume == "never":
            raise ValueError(
                f"{folder} already holds a run: resume it (--resume auto) or choose another output=FOLDER"
            )
        changed = differences(stored.read_text(), config_yaml)
        defining = [text for key, text in changed.items() if not _is_resumable(key)]
        if defining and resume == "auto":
            raise ValueError(
                f"{folder} holds a run with other settings ({_listed(defining)}): restore them to resume it, "
                "choose another output=FOLDER, or resume with the new ones by --resume changed"
            )
        if changed:
            messages.append(f"resuming with changed settings: {_listed(list(changed.values()))}")
    stop = folder / STOP_FILE
    if stop.exists():
        if resume == "auto":
            raise ValueError(
                f"{folder} holds a run that stopped and would stop again ({stop.read_text().strip()}): "
                "change the settings it names and resume with --resume changed"
            )
        stop.unlink()
    atomic_write_text(stored, config_yaml)
    return messages


def _lock(folder: Path, lock: list[IO[str]]) -> list[str]:
    """Lock the folder while the file in `lock` is open; the system releases it when the process dies."""
    try:
        import fcntl
    except ImportError:  # Windows
        return [f"cannot lock {folder} on this system: make sure that no other run writes there"]
    file = (folder / ".lock").open("a+")
    lock.append(file)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                raise ValueError(
                    f"{folder} is in use by another run ({file.read().strip() or 'just starting'}): "
                    "wait for it to end, or choose another output=FOLDER"
                ) from None
            time.sleep(0.2)
        except OSError as error:
            return [f"cannot lock {folder} ({error.strerror}): make sure that no other run writes there"]
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return []


def differences(old_yaml: str, new_yaml: str) -> dict[str, str]:
    """The settings that differ between two configs, by dotted key: "KEY was A, now B".

    Both may use the setting keys of the previous release.
    """
    old, new = (_flat(yaml.safe_load(text)) for text in (old_yaml, new_yaml))
    keys = [key for key in {**old, **new} if old.get(key, "unset") != new.get(key, "unset")]
    return {key: f"{key} was {old.get(key, 'unset')}, now {new.get(key, 'unset')}" for key in keys}


def _flat(data: Any) -> dict[str, Any]:
    return flatten(rename_keys(data, RENAMED_RUN_SETTINGS)[0]) if isinstance(data, Mapping) else {}


def _is_resumable(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in RESUMABLE_SETTINGS for length in range(1, len(parts) + 1))


def _listed(texts: list[str]) -> str:
    shown = "; ".join(texts[:6])
    return shown if len(texts) <= 6 else f"{shown}; and {len(texts) - 6} more"
