"""The results of an evaluation: one row per prompt, and means over prompts with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from amortized.evaluation.metrics import Interval, bootstrap_interval, chance_recall
from amortized.wording import count

METRICS = (
    "clip_similarity",
    "recall_at_1",
    "recall_of_truth",
    "iou",
    "iou_any_azimuth",
    "iou_start",
    "iou_best_sphere",
    "color_error",
    "front_shown",
    "janus",
)
# Scores of the generator, by which prompts are sorted and compared; the others are those of baselines.
COMPARED = (
    "recall_at_1",
    "clip_similarity",
    "iou",
    "iou_any_azimuth",
    "color_error",
    "front_shown",
    "janus",
)
LABELS = {
    "clip_similarity": "CLIP similarity",
    "recall_at_1": "R@1",
    "recall_of_truth": "R@1 of true object",
    "iou": "IoU",
    "iou_any_azimuth": "IoU, any azimuth",
    "iou_start": "IoU of the start",
    "iou_best_sphere": "IoU of best sphere",
    "color_error": "Color error",
    "front_shown": "Front mark",
    "janus": "Janus",
}
SOLID_OF_SPLATS = (
    "Splats have no surface: for IoU, color error and the front mark, a point is inside if the sum "
    "of opacity × exp(−d²/2) over all splats exceeds 0.5 (d: its Mahalanobis distance from each). For IoU, "
    "it is inside, too, if none of 48 cameras around the object can see it: splats may be a shell."
)
SIDES = ("front", "left", "back", "right")


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """Scores of one prompt. None: does not apply to this prompt. NaN: applies, but is undefined."""

    id: str
    text: str
    split: str
    kind: str | None = None  # group of the ground truth
    clip_similarity: float  # mean cosine between its views and its text
    recall_at_1: float  # fraction of its views that match its own text best
    recall_of_truth: float | None = None  # recall@1 of the true object: the ceiling that CLIP allows
    iou: float | None = None
    iou_any_azimuth: float | None = None
    iou_start: float | None = None
    iou_best_sphere: float | None = None
    color_error: float | None = None
    front_shown: float | None = None  # 1 if the front shows the mark, else 0
    janus: float | None = None  # 1 if another side shows it, else 0
    mark_sides: tuple[bool, ...] | None = None  # front, left, back, right
    near_train: str | None = None  # the training prompt that a held-out prompt nearly duplicates
    slug: str | None = None  # the file name of its media, without suffix
    strip: str | None = None  # media paths, relative to the folder of the results
    truth_strip: str | None = None  # the same views of the true object
    turntable: str | None = None
    object: str | None = None  # a GLB, or splats
    splats: bool = False  # the scene has splats, whose solid is defined by their density
    antialias: bool = True  # of splats: they were trained with antialiasing, which viewers should know


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that the report shows. Metrics that apply to no prompt are absent."""

    name: str
    metrics: Mapping[str, Interval]
    by_split: Mapping[str, Mapping[str, Interval]]
    by_kind: Mapping[str, Mapping[str, Interval]]
    gallery: int  # number of texts that recall@1 chooses among
    prompts: tuple[PromptRow, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)  # of code, run and machine

    @property
    def nearness(self) -> dict[str, int]:
        """Number of held-out prompts, and how many of them nearly duplicate a training prompt."""
        held_out = [row for row in self.prompts if row.split != "train"]
        return {"held_out": len(held_out), "near_train": sum(row.near_train is not None for row in held_out)}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; NaN and infinity become None."""
        data = asdict(self)
        gallery = data.pop("gallery")
        data["nearness"] = self.nearness
        data["chance"] = {"recall_at_1": chance_recall(gallery), "gallery": gallery}
        return plain(data)


def summarize(
    rows: Sequence[PromptRow],
    *,
    name: str,
    gallery: int,
    settings: Mapping[str, Any],
    seed: int,
    provenance: Mapping[str, Any] | None = None,
) -> Results:
    """Compute means with 95 % bootstrap intervals over prompts: overall, per split and per kind.

    A split that holds both near-duplicates of training prompts and other prompts gets a second entry
    for the others alone.

    Args:
        gallery: number of distinct texts in the gallery, for the chance level of recall.
        settings, provenance: recorded in the results as they are.
        seed: of the bootstrap.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there is no prompt to evaluate: the selection is empty, name at least one prompt")
    splits = {split: [r for r in rows if r.split == split] for split in dict.fromkeys(r.split for r in rows)}
    for split, split_rows in list(splits.items()):
        novel = [row for row in split_rows if row.near_train is None]
        if novel and len(novel) < len(split_rows):
            splits[f"{split}, unlike any trained"] = novel
    kinds = sorted({row.kind for row in rows if row.kind is not None})
    return Results(
        name=name,
        metrics=_means(rows, seed),
        by_split={split: _means(split_rows, seed) for split, split_rows in splits.items()},
        by_kind={kind: _means((r for r in rows if r.kind == kind), seed) for kind in kinds},
        gallery=gallery,
        prompts=tuple(rows),
        settings=dict(settings),
        provenance=dict(provenance or {}),
    )


def _means(rows: Iterable[PromptRow], seed: int) -> dict[str, Interval]:
    """Interval of each metric over the rows that it applies to; a NaN among them makes the mean NaN."""
    columns = {name: [] for name in METRICS}
    for row in rows:
        for name, values in columns.items():
            if (value := getattr(row, name)) is not None:
                values.append(value)
    return {name: bootstrap_interval(v, seed=seed) for name, v in columns.items() if v}


def merge_rows(shards: Iterable[Sequence[PromptRow]], order: Sequence[str]) -> list[PromptRow]:
    """Merge the rows of several processes into the order of the prompt ids `order`, repeats included.

    Shards may overlap (padding of uneven shards); the first row of an id wins.

    Raises:
        ValueError: no shard holds a prompt of `order`; a mean over the rest would look complete.
    """
    by_id: dict[str, PromptRow] = {}
    for shard in shards:
        for row in shard:
            by_id.setdefault(row.id, row)
    if missing := [key for key in order if key not in by_id]:
        raise ValueError(f"not evaluated: {count(len(missing), 'prompt')}, the first is {missing[0]!r}")
    return [by_id[key] for key in order]


def index_entry(row: PromptRow) -> dict[str, Any]:
    """An entry of index.json: which files show a prompt, and how it scored."""
    scores = {name: plain(getattr(row, name)) for name in METRICS if getattr(row, name) is not None}
    names = ("id", "slug", "split", "strip", "truth_strip", "turntable", "object")
    return {"prompt": row.text, **{name: getattr(row, name) for name in names}, "scores": scores}


def row_values(row: PromptRow) -> dict[str, Any]:
    """A row as plain values in field order, for a table."""
    return {field.name: plain(getattr(row, field.name)) for field in fields(row)}


def plain(value: Any) -> Any:
    """Copy of a nested value with non-finite numbers replaced by None and tuples by lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def summary(results: Results) -> str:
    """The headline table as text: each metric with its interval, and the chance level of recall."""
    made = ", ".join(
        str(results.provenance[key]) for key in ("method", "checkpoint") if key in results.provenance
    )
    made = f" ({made})" if made else ""
    lines = [
        f"{results.name}{made}: {count(len(results.prompts), 'prompt')}, "
        f"recall among {results.gallery} texts (chance {chance_recall(results.gallery):.4f})"
    ]
    lines += [
        f"  {name:<18} {interval.mean:7.4f}{_range(interval)}" for name, interval in results.metrics.items()
    ]
    if (near := results.nearness)["held_out"]:
        lines.append(
            f"  {near['near_train']} of {near['held_out']} held-out prompts nearly duplicate a trained one"
        )
    return "\n".join(lines)


def _range(interval: Interval) -> str:
    """The interval in brackets; one prompt has none."""
    return f"   [{interval.low:.4f}, {interval.high:.4f}]" if interval.n > 1 else ""
