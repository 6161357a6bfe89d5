"""The place of a trained generator on disk: enough for another process to load the same one."""

from __future__ import annotations

from dataclasses import dataclass

from amortized.generation.model import TextTo3D


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The folder or Hub id of a generator."""

    path: str
    is_run: bool
    checkpoint: str = "newest"
    text_encoder: str | None = None
    device: str = "auto"

    def load(self) -> TextTo3D:
        """Load it. Raises ValueError; see `TextTo3D.from_run` and `from_pretrained`."""
        if self.is_run:
            return TextTo3D.from_run(self.path, checkpoint=self.checkpoint, device=self.device)
        return TextTo3D.from_pretrained(self.path, text_encoder=self.text_encoder, device=self.device)
