"""Evaluations on disk, made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from amortized.evaluation import PromptRow, summarize, write_results
from amortized.media import save_strip


def row(text: str, **scores: Any) -> PromptRow:
    values = {"clip_similarity": 0.5, "recall_at_1": 1.0, **scores}
    return PromptRow(id=f"id of {text}"[:200], text=text, split="train", **values)


def evaluation(
    folder: Path,
    rows: Sequence[PromptRow],
    *,
    name: str = "run",
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write the results of an evaluation, and the strips that its rows name; returns the folder."""
    for number, one in enumerate(rows):
        if one.strip is not None:
            shade = torch.full((4, 16, 16, 3), number / len(rows))
            save_strip(folder / one.strip, shade)
    results = summarize(rows, name=name, gallery=9, settings=settings or {}, seed=0, provenance=provenance)
    write_results(folder, results)
    return folder


def run(folder: Path, rows: Sequence[PromptRow], *, steps: int = 9, **more: Any) -> Path:
    """Write a run with its log, and its evaluation; returns the folder."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("output: x\n")
    lines = [{"step": step, "loss": 1 / step, "opacity": 0.1 * step} for step in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation(folder / "evaluation", rows, **{"name": folder.name, **more})
    return folder
