"""Settings of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from amortized.config import PathText, check


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, what to retain, where to upload."""

    every: int = 1000  # steps
    keep: int = 2  # the newest so many
    keep_every: int | None = None  # and, permanently, those of every so many steps
    best_by: str | None = None  # and the one with the lowest mean of this number of log.jsonl, e.g. guidance
    upload: PathText | None = (
        None  # fsspec URL to upload copies to, and to download from if the folder has none
    )

    def __post_init__(self) -> None:
        check(self, "every", "keep", "keep_every", at_least=1, limit=10**9)
