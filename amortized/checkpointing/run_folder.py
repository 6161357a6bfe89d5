"""A run's folder: created or resumed, and locked against other runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from amortized.checkpointing.checkpoint import list_checkpoints
from amortized.checkpointing.files import clean_temporaries
from amortized.checkpointing.identity import (
    RunIdentity,
    corpus_digest,
    load_identity,
    new_identity,
    save_identity,
)
from amortized.checkpointing.settings import defining_settings, differing, flat_settings, is_resumable, listed
from amortized.files import atomic_write_text
from amortized.locks import FileLock, LockedError
from amortized.parallel import World
from amortized.types import Corpus
from amortized.untrusted import MiB, read_text, reason_of, short

Resume = Literal["auto", "never", "changed"]

CONFIG, LOCK = "config.yaml", ".lock"
STOP_FILE = "stopped"  # in a run's folder: why it stopped, if the same steps would stop there again
TRACES = (LOCK, "run.json", "events.jsonl")  # a run has one beside its config.yaml, the lock from the start
LOCK_TIMEOUT_S = 15.0  # for a run that is just ending to release its folder


@contextmanager
def open_run(
    folder: Path,
    config_yaml: str,
    world: World,
    *,
    resume: Resume = "auto",
    corpus: Corpus | None = None,
) -> Iterator[list[str]]:
    """Context: a run's folder with its config.yaml, created or resumed, locked against other runs.

    Collective; yields messages to log. `resume` is auto (resume if the folder holds a run), never, or
    changed (resume even if settings or the prompts of `corpus` differ). The folder always has the newest
    config.

    Raises ValueError on all ranks if the folder cannot be written or its files are damaged, if another run
    holds the lock, if the folder holds a run and `resume` is never, or if what defines the run has changed.
    """
    locks: list[FileLock] = []

    def opened() -> list[str]:
        if not world.is_main:
            return []
        try:
            return _open(folder, config_yaml, resume, corpus, locks)
        except OSError as error:
            raise ValueError(
                f"cannot use {short(folder)} as the folder of a run ({reason_of(error)}): free disk space or "
                "make it writable, or choose another output=FOLDER"
            ) from error

    try:
        yield world.run_on_all(opened)[0]
    finally:
        for lock in locks:
            lock.close()


def _open(
    folder: Path, config_yaml: str, resume: Resume, corpus: Corpus | None, locks: list[FileLock]
) -> list[str]:
    if str(folder).strip() in ("", "."):
        raise ValueError("output is empty, or the current folder: name a folder for the run")
    stored = folder / CONFIG
    is_run = any((folder / name).exists() for name in TRACES) or list_checkpoints(folder / "checkpoints")
    if stored.exists() and not is_run:
        raise ValueError(f"{short(stored)} was not written by a run: choose another output=FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    messages = _lock(folder, locks)
    for place in (folder, folder / "checkpoints", folder / "previews"):
        messages += clean_temporaries(place)
    # The digest reads the whole corpus: only now, after everything that is quicker to find wrong.
    identity = load_identity(folder)
    if stored.exists() or stored.is_symlink():
        messages += _check_settings(folder, config_yaml, resume)
    digest = "" if corpus is None else corpus_digest(corpus)
    if identity is None:
        identity = new_identity(config_yaml, digest)
    else:
        if identity.corpus and digest and identity.corpus != digest:
            messages.append(_changed_corpus(folder, corpus, resume))
        identity = replace(
            identity, corpus=digest or identity.corpus, settings=defining_settings(config_yaml)
        )
    _check_stop(folder, resume)
    # A kill between the two leaves the old config: the settings are compared with it again.
    _save_if_changed(folder, identity)
    atomic_write_text(stored, config_yaml)
    (folder / STOP_FILE).unlink(missing_ok=True)
    return messages


def _check_settings(folder: Path, config_yaml: str, resume: Resume) -> list[str]:
    """Messages about settings that have changed. Raises ValueError if they may not."""
    if resume == "never":
        raise ValueError(
            f"{folder} already holds a run: resume it (--resume auto) or choose another output=FOLDER"
        )
    stored = folder / CONFIG
    try:
        old = flat_settings(read_text(stored, MiB), short(stored))
    except ValueError as error:
        raise ValueError(
            f"the settings of the run in {short(folder)} are damaged ({error}): restore its config.yaml, or "
            "choose another output=FOLDER"
        ) from error
    changed = differing(old, flat_settings(config_yaml))
    defining = [text for key, text in changed.items() if not is_resumable(key)]
    if defining and resume == "auto":
        raise ValueError(
            f"{folder} holds a run with other settings ({listed(defining)}): restore them to resume it, "
            "choose another output=FOLDER, or resume with the new ones by --resume changed"
        )
    return [f"resuming with changed settings: {listed(list(changed.values()))}"] if changed else []


def _changed_corpus(folder: Path, corpus: Corpus | None, resume: Resume) -> str:
    name = corpus.name if corpus is not None else ""
    if resume == "auto":
        raise ValueError(
            f"the corpus {name} has other prompts or splits than when the run in {short(folder)} started: "
            "restore its files, choose another output=FOLDER, or resume with the new ones by --resume changed"
        )
    return f"resuming with changed prompts: the corpus {name} has other prompts or splits than before"


def _check_stop(folder: Path, resume: Resume) -> None:
    stop = folder / STOP_FILE
    if resume != "changed" and (stop.exists() or stop.is_symlink()):
        reason = " ".join(read_text(stop, 2**16).split())[:1000]
        raise ValueError(
            f"{folder} holds a run that stopped and would stop again ({reason}): "
            "change the settings it names and resume with --resume changed"
        )


def _save_if_changed(folder: Path, identity: RunIdentity) -> None:
    if load_identity(folder) != identity:
        save_identity(folder, identity)


def _lock(folder: Path, locks: list[FileLock]) -> list[str]:
    """Lock the folder until the lock is closed; the system releases it when the process dies."""
    try:
        locks.append(FileLock(folder / LOCK, LOCK_TIMEOUT_S))
    except LockedError as error:
        raise ValueError(
            f"{folder} is in use by another run ({error.holder}): "
            "wait for it to end, or choose another output=FOLDER"
        ) from None
    problem = locks[-1].problem
    return [f"cannot lock {folder} ({problem}): make sure that no other run writes there"] if problem else []
