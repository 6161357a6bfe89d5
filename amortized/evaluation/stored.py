"""Read the results of an evaluation that was written before, here or elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.evaluation.results import METRICS, PromptRow
from amortized.pages import finite
from amortized.untrusted import MiB, inside, read_json_object, short

RESULTS = "results.json"
LIMIT = 512 * MiB  # bytes; a prompt takes some 700
TEXTS = ("id", "text", "split")
FLAGS = ("splats", "antialias")
OPTIONAL_TEXTS = ("kind", "near_train", "slug", "strip", "truth_strip", "turntable", "object")
MAX_TEXT = 100_000  # characters


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What results.json has about an evaluation, without its means."""

    name: str
    rows: tuple[PromptRow, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    gallery: int | None  # number of texts that recall@1 chooses among


def read_results(folder: Path) -> Stored:
    """The results in the folder of an evaluation. Raises ValueError for files of another shape.

    A score that is undefined, which JSON cannot express, becomes None as if it did not apply.
    """
    path = inside(folder, RESULTS)
    data = read_json_object(path, LIMIT)
    try:
        name, rows, chance = data.get("name"), data.get("prompts"), data.get("chance")
        if not isinstance(name, str):
            raise ValueError("it has no name")
        if not isinstance(rows, list) or not rows:
            raise ValueError("it has no prompts")
        gallery = chance.get("gallery") if isinstance(chance, dict) else None
        return Stored(
            name=name[:MAX_TEXT].encode(errors="replace").decode(),
            rows=tuple(_row(row, number) for number, row in enumerate(rows, 1)),
            settings=_mapping(data.get("settings")),
            provenance=_mapping(data.get("provenance")),
            gallery=gallery if type(gallery) is int and 0 < gallery < 2**53 else None,
        )
    except ValueError as error:
        raise ValueError(
            f"{short(path)} is not the result of an evaluation ({error}): evaluate again"
        ) from None


def _row(data: Any, number: int) -> PromptRow:
    if not isinstance(data, dict):
        raise ValueError(f"prompt {number} is not an object")
    values: dict[str, Any] = {}
    for key in (*TEXTS, *OPTIONAL_TEXTS):
        value = data.get(key)
        if value is None and key in OPTIONAL_TEXTS:
            continue
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise ValueError(f"prompt {number} has no valid {key}")
        values[key] = value.encode(errors="replace").decode()  # JSON can hold half characters
    values |= {key: data[key] for key in FLAGS if isinstance(data.get(key), bool)}
    for key in METRICS:
        if (value := data.get(key)) is not None and finite(value) is None:
            raise ValueError(f"prompt {number} has no valid {key}")
        values[key] = finite(value)
    for key in ("clip_similarity", "recall_at_1"):  # which every prompt has
        values[key] = math.nan if values[key] is None else values[key]
    return PromptRow(**values)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
