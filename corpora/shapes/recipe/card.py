"""Model cards of the embedded models."""

from __future__ import annotations

import json
from pathlib import Path


def write_card(folder: Path, title: str, body: str, figures: dict) -> None:
    """Write README.md, with title, body and a table of the figures, and figures.json to a model folder."""
    rows = "\n".join(f"| {key} | {value:.3f} |" for key, value in figures.items())
    head = f"---\nlicense: apache-2.0\n---\n\n# {title}\n\n{body.strip()}\n\n"
    (folder / "README.md").write_text(f"{head}| figure | value |\n|---|---|\n{rows}\n", encoding="utf-8")
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
