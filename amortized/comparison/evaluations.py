"""The evaluations to compare: their folders, results, training curves and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.evaluation.results import PromptRow
from amortized.evaluation.stored import RESULTS, read_results
from amortized.pages import PREVIEW_SCORES, History, load_history
from amortized.pages.markup import one_line
from amortized.untrusted import inside, short
from amortized.wording import command

MAX_RUNS = 12  # as many lines can be distinguished in a chart
CURVES = ("loss", "opacity", "gradient_norm", *PREVIEW_SCORES)
MAX_NAME = 60  # characters


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation that takes part in a comparison."""

    folder: Path
    label: str  # distinct from those of the others
    rows: Mapping[str, PromptRow]  # by text, in order
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    gallery: int | None  # number of texts that recall@1 chooses among
    history: History


def read_evaluations(paths: Sequence[Path]) -> list[Evaluated]:
    """The evaluations that paths name, of runs or by themselves. Raises ValueError for other paths."""
    if not 2 <= len(paths) <= MAX_RUNS:
        raise ValueError(f"a comparison takes 2 to {MAX_RUNS} runs, got {len(paths)}")
    folders = [evaluation_of(path) for path in paths]
    places = [folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ValueError(f"{short(paths[number])} is named twice: name different runs or evaluations")
    stored = [read_results(folder) for folder in folders]
    labels = _labels([(one.name, one.provenance.get("checkpoint", "")) for one in stored], folders)
    return [
        Evaluated(
            folder=folder,
            label=label,
            rows=_by_text(one.rows),
            settings=one.settings,
            provenance=one.provenance,
            gallery=one.gallery,
            history=_history(folder, one.provenance.get("step")),
        )
        for folder, label, one in zip(folders, labels, stored, strict=True)
    ]


def evaluation_of(path: Path) -> Path:
    """The folder of results that a path names: itself, or that of a run. Raises ValueError for others."""
    for folder in (path, inside(path, "evaluation")):
        if (folder / RESULTS).is_file():
            return folder
    if not path.is_dir():
        raise ValueError(f"{short(path)} is not a folder: name a run, or the folder of an evaluation")
    if others := sorted(path.glob(f"evaluations/*/{RESULTS}")):
        raise ValueError(
            f"{short(path)} has no evaluation of its whole corpus: evaluate it "
            f"({command('evaluate', path)}), or name another one, such as {short(others[0].parent)}"
        )
    if (path / "config.yaml").exists():
        raise ValueError(
            f"{short(path)} has not been evaluated: evaluate it first ({command('evaluate', path)})"
        )
    raise ValueError(f"{short(path)} holds neither a run nor an evaluation (no {RESULTS})")


def _by_text(rows: Sequence[PromptRow]) -> dict[str, PromptRow]:
    """The rows by text, in order; of a repeated text the first."""
    found: dict[str, PromptRow] = {}
    for row in rows:
        found.setdefault(row.text, row)
    return found


def _history(evaluation: Path, step: Any) -> History:
    """The training of the run in which an evaluation lies, up to the evaluated checkpoint."""
    place = evaluation.resolve()
    run = place.parents[1] if place.parent.name == "evaluations" else place.parent
    if not (run / "log.jsonl").is_file() or not (run / "config.yaml").is_file():
        return History(note="its folder is not in a run with a log")
    try:
        path = inside(run, "log.jsonl")
    except ValueError as error:
        return History(note=str(error))
    return load_history(path, step if isinstance(step, int) else None, CURVES)


def _labels(names: Sequence[tuple[str, object]], folders: Sequence[Path]) -> list[str]:
    """Distinct names: that of the run; of equal ones, with the checkpoint, the folder or a number."""
    plain = [one_line(name, MAX_NAME) or "run" for name, _ in names]
    labels = list(plain)
    for name in dict.fromkeys(plain):
        group = [number for number, label in enumerate(plain) if label == name]
        if len(group) == 1:
            continue
        for additions in (
            [one_line(names[number][1], MAX_NAME) for number in group],
            [one_line(folders[number].name, MAX_NAME) for number in group],
            [str(number + 1) for number in group],
        ):
            if len(set(additions)) == len(group):
                break
        for number, addition in zip(group, additions, strict=True):
            labels[number] = f"{name} ({addition})"
    is_distinct = len(set(labels)) == len(labels)
    return labels if is_distinct else [f"{label} ({number})" for number, label in enumerate(labels, 1)]
