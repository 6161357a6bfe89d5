"""Files of a run's folder: published, removed and cleaned up so that a kill at any moment loses nothing.

A name that begins with a dot is temporary. A new folder is written as `.partial_NAME` and renamed; one that
it replaces is `.replaced_NAME` until the new one is in place, and one that is removed is `.removed_NAME`.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from amortized.checkpointing.checkpoint import is_checkpoint_name
from amortized.files import sync
from amortized.untrusted import reason_of, short

PARTIAL, REPLACED, REMOVED = ".partial_", ".replaced_", ".removed_"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.[A-Za-z0-9]+)?")  # as `atomic_path` names them


def publish(partial: Path, final: Path) -> str | None:
    """Rename a complete folder to its final name, which may exist; returns a note, or None.

    At every moment the old folder or the new one exists, under a name that `clean` knows.
    """
    replaced = final.with_name(f"{REPLACED}{final.name}")
    exists = os.path.lexists(final)
    if exists:
        delete(replaced)
        os.rename(final, replaced)
    try:
        os.rename(partial, final)
    except OSError:
        if exists:
            os.rename(replaced, final)
        raise
    sync(final.parent)
    return delete(replaced) if exists else None


def retire(folder: Path) -> str | None:
    """Remove a folder, which disappears at once; returns a note if that fails, or None."""
    removed = folder.with_name(f"{REMOVED}{folder.name}")
    problem = delete(removed)
    try:
        os.rename(folder, removed)
    except OSError as error:
        return f"could not remove {short(folder)} ({reason_of(error)})"
    return problem or delete(removed)


def delete(path: Path) -> str | None:
    """Delete a folder, file or link, but nothing behind a link; returns a note if that fails, or None."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"could not remove {short(path)} ({reason_of(error)}): remove it by hand"
    return None


def clean(folder: Path) -> list[str]:
    """Finish what a killed process began in a folder of checkpoints; returns notes.

    A replaced checkpoint whose successor is missing is restored; everything temporary is deleted.
    """
    notes = []
    for path in _entries(folder):
        prefix = next((p for p in (PARTIAL, REPLACED, REMOVED) if path.name.startswith(p)), "")
        final = path.with_name(path.name.removeprefix(prefix))
        if not prefix or not is_checkpoint_name(final.name):
            continue
        if prefix == REPLACED and not os.path.lexists(final):
            os.rename(path, final)
            sync(folder)
        else:
            notes.append(delete(path))
    return [*filter(None, notes), *clean_temporaries(folder)]


def clean_temporaries(folder: Path) -> list[str]:
    """Delete the temporary files of `atomic_path` in a folder that no other process writes; returns notes."""
    found = [p for p in _entries(folder) if _TEMPORARY.fullmatch(p.name) and p.is_file()]
    return list(filter(None, map(delete, found)))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith("."))
    except OSError:  # there is none yet
        return []
