"""Settings of logs, previews and stopping rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amortized.config import check


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What to log and when to stop."""

    log_every: int = 1  # steps between lines of log.jsonl
    tracker: Literal["wandb", "trackio"] | None = None  # logs the same numbers there
    profile: tuple[int, int] | None = None  # [FROM, TO): rank 0 writes a trace of these steps
    preview_every: int = 500
    preview_prompts: int = 16
    preview_scores: bool = False  # score previews with evaluation.clip, which takes memory on the device
    # The scene has collapsed if the mean opacity stays outside this range for `patience` steps.
    min_opacity: float = 0.005
    max_opacity: float = 0.98
    patience: int = 50

    def __post_init__(self) -> None:
        check(self, "log_every", "preview_every", "patience", at_least=1, limit=10**9)
        check(self, "preview_prompts", at_least=1, limit=4096)
        check(self, "profile", limit=10**9)
        if self.profile is not None and not 0 < self.profile[0] < self.profile[1]:
            raise ValueError(f"profile must be [FROM, TO] with 0 < FROM < TO, got {list(self.profile)}")
        if not 0 <= self.min_opacity < self.max_opacity <= 1:
            raise ValueError(
                "min_opacity and max_opacity must satisfy 0 <= min < max <= 1, "
                f"got {self.min_opacity} and {self.max_opacity}"
            )
