"""Export: a run's generator as a self-contained folder, which appears complete or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from amortized import __version__
from amortized.checkpointing import (
    PARTIAL,
    delete,
    file_digests,
    find_checkpoint,
    first_not_finite,
    inference_part,
    load_meta,
    read_part,
)
from amortized.config import build_config, config_to_dict
from amortized.files import sync
from amortized.generation.card import model_card
from amortized.generation.folder import (
    CARD,
    CONFIG,
    FORMAT,
    LOCK,
    WEIGHTS,
    TextEncoderConfig,
    load_encoder,
    model_config,
    one_sentence,
    run_settings,
)
from amortized.knowledge import PROMPTS, Knowledge, to_json
from amortized.locks import FileLock, LockedError
from amortized.untrusted import reason_of, short

OURS = {CONFIG, WEIGHTS, CARD, LOCK, PROMPTS}  # all that a folder left by a killed export can hold


def export(run: Path, folder: Path, checkpoint: str = "newest", knowledge: Knowledge | None = None) -> Path:
    """Export a run's generator, with EMA weights if there are any; returns the checkpoint exported.

    `knowledge` is what it was trained on, for those who serve it.

    The folder appears complete or not at all, and nothing is left if that fails. Raises ValueError if the run
    or its checkpoint cannot be read, its text encoder is missing, the folder exists, another process exports
    to it, or it cannot be written.
    """
    check_new(folder)
    settings = run_settings(run)
    path = find_checkpoint(run, checkpoint)
    config = config_to_dict(model_config(settings, path))
    with one_sentence(f"the config.yaml of {short(run)}", "restore the one that the run wrote"):
        guidance = {name: str(settings["guidance"][name]) for name in ("noise", "reference")}
        training = {
            "corpus": str(settings["corpus"]),
            "prompt": settings.get("prompt"),
            "step": load_meta(path).step,
            "guidance": {**settings["guidance"], **guidance},
            "prior": str(settings["prior"]["path"]),
        }
    encoder = load_encoder(
        build_config(TextEncoderConfig, config["text_encoder"]), torch.device("cpu"), allow_network=False
    )
    config["text_encoder"]["fingerprint"] = encoder.fingerprint()
    weights = read_part(path, inference_part(path))
    if name := first_not_finite(weights):
        raise ValueError(f"{path} cannot be exported ({name} has values that are not finite)")
    data = {"format": FORMAT, "amortized3d": __version__, **config, "training": training}
    write_folder(folder, weights, data, model_card(run, folder.name, data), knowledge)
    return path


def write_folder(
    folder: Path,
    weights: dict[str, Tensor],
    data: dict[str, Any],
    card: str,
    knowledge: Knowledge | None = None,
) -> None:
    """Write an exported folder: weights, config.json from `data`, to which the digests are added, and a card.

    It appears complete or not at all. Raises ValueError if it exists, another process writes it, or it cannot
    be written.
    """
    try:
        with _new_folder(folder) as partial:
            save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
            files = [partial / WEIGHTS]
            if knowledge is not None:
                files.append(partial / PROMPTS)
                files[-1].write_text(json.dumps(to_json(knowledge), indent=1) + "\n", encoding="utf-8")
            data["files"] = file_digests(files)
            (partial / CONFIG).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            (partial / CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot write {short(folder)} ({reason_of(error)}): free disk space, or choose another folder"
        ) from error


def check_new(folder: Path) -> None:
    """Raise ValueError if a folder exists, or its name cannot be one."""
    try:
        exists = os.path.lexists(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write {short(folder)} ({reason_of(error)})") from error
    if exists or folder.name in ("", ".."):
        raise ValueError(f"{short(folder)} exists: choose another folder, or remove it")


def _is_ours(path: Path) -> bool:
    """Whether an export wrote this file of a partial folder; safetensors writes to .tmpXXXXXX first."""
    return path.name in OURS or (path.name.startswith(".tmp") and path.is_file())


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Context: a temporary folder beside `folder`, renamed to it if the block succeeds, else deleted.

    A lock inside it excludes other processes; one that a killed process left is emptied and used. Raises
    ValueError, and OSError if something cannot be written.
    """
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        if partial.is_symlink() or not partial.is_dir() or not all(map(_is_ours, partial.iterdir())):
            raise ValueError(f"{short(partial)} is in the way: remove it, or choose another folder") from None
    try:
        lock = FileLock(partial / LOCK)
    except LockedError as error:
        raise ValueError(
            f"another process ({error.holder}) is exporting to {short(folder)}: wait for it to end, or "
            "choose another folder"
        ) from None
    except ValueError:
        with suppress(OSError):
            partial.rmdir()  # it is empty if this process made it
        raise
    try:
        if not lock.is_current() or os.path.lexists(folder):  # the other process has just finished
            if lock.is_current():
                delete(partial)
            raise ValueError(f"{short(folder)} exists: choose another folder, or remove it")
        for path in partial.iterdir():
            if path.name != LOCK:
                path.unlink()
        try:
            yield partial
            for file in (*partial.iterdir(), partial):
                sync(file)
            # With the lock: without it another process could take the folder over before the rename.
            partial.rename(folder)
        except BaseException:
            delete(partial)
            raise
        (folder / LOCK).unlink()
        sync(folder.parent)
    finally:
        lock.close()
