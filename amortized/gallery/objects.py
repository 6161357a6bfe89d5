"""The objects of a folder: what its index lists, as far as the files are there.

An index may come from elsewhere, so every value is checked; what is not valid is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_SETTINGS = 40  # of a file; generate writes 14
MAX_FORMATS = 16  # of an object; generate writes 11
PICTURES, VIDEOS = ("png", "webp"), ("mp4",)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of an object."""

    format: str
    name: str  # a regular file directly in the folder
    size: int  # bytes
    model: str  # checkpoint, and digest of weights and settings; "" if it is not known
    settings: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """An object, or the way between two."""

    name: str
    prompts: tuple[str, ...]  # one, or two: the ends of a way
    seed: int | None
    files: Mapping[str, File]  # by format, at least one
    report: str | None = None  # the file that tells how its assets were made

    @property
    def in_3d(self) -> tuple[File, ...]:
        """The files that open in 3D: the mesh, and the splats in one of their formats."""
        splats = "splat" if "splat" in self.files else "splat-ply"
        return tuple(self.files[format] for format in ("glb", splats) if format in self.files)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that made its files: one, unless a later call made some of the files only."""
        return tuple(dict.fromkeys(file.model for file in self.files.values() if file.model))

    @property
    def licenses(self) -> tuple[str, ...]:
        found = (file.settings.get("license") for file in self.files.values())
        return tuple(dict.fromkeys(license for license in found if isinstance(license, str) and license))


def objects_of(folder: Path, entries: Iterable[Mapping[str, Any]]) -> list[Generated]:
    """The objects of the entries of an index that have files in `folder`, in order. Raises OSError."""
    sizes = file_sizes(folder)
    made = (_object(entry, sizes) for entry in entries)
    return [each for each in made if each is not None]


def file_sizes(folder: Path) -> dict[str, int]:
    """The bytes of each regular file directly in a folder; links are left out. Raises OSError."""
    with os.scandir(folder) as entries:
        return {
            entry.name: entry.stat(follow_symlinks=False).st_size
            for entry in entries
            if entry.is_file(follow_symlinks=False)
        }


def _object(entry: Mapping[str, Any], sizes: Mapping[str, int]) -> Generated | None:
    name, listed = entry.get("name"), entry.get("files")
    texts = [entry.get("prompt")] if "prompt" in entry else entry.get("prompts")
    if not isinstance(name, str) or not isinstance(listed, dict) or not isinstance(texts, list):
        return None
    prompts = tuple(text for text in texts[:2] if isinstance(text, str))
    files = {file.format: file for file in _files(listed, sizes)}
    if not prompts or not files:
        return None
    seed = entry.get("seed")
    report = f"{name}.json" if f"{name}.json" in sizes else None
    return Generated(
        name=name,
        prompts=prompts,
        seed=seed if type(seed) is int and 0 <= seed < 2**63 else None,
        files=files,
        report=report,
    )


def _files(listed: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[File]:
    for format, record in list(listed.items())[:MAX_FORMATS]:
        if not isinstance(record, dict):
            continue
        name, model, settings = (record.get(key) for key in ("file", "model", "settings"))
        if not isinstance(name, str) or name not in sizes:
            continue
        known = list(settings.items())[:MAX_SETTINGS] if isinstance(settings, dict) else []
        known = [(key, value) for key, value in known if _is_plain(value)]
        yield File(
            format=format,
            name=name,
            size=sizes[name],
            model=model if isinstance(model, str) else "",
            settings=dict(known),
        )


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_SETTINGS and not any(isinstance(part, list | dict) for part in value)
    return not isinstance(value, dict)
