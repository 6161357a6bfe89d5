"""Small runs of the real commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


def small(prior: str, output: Path, *more: str) -> list[str]:
    return [
        "train.py",
        "configs/quickstart.yaml",
        f"prior={prior}",
        f"output={output}",
        "trainer.steps=4",
        "trainer.prompts_per_process=2",
        "trainer.render_size=16",
        "checkpointing.every=2",
        "monitoring.preview_prompts=1",
        *more,
    ]
