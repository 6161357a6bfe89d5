"""Folders of runs as a training leaves them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def make_run(
    folder: Path, *, step: int = 30, steps: int = 100, ending: str | None = None, **settings: Any
) -> Path:
    """A run that has logged `step` steps of half a second, and its end if there is one."""
    folder.mkdir(parents=True)
    config = {
        "output": str(folder),
        "corpus": "shapes16",
        "generator": {"name": "hyper-ingp"},
        "guidance": {"method": "asd"},
        "trainer": {"steps": steps},
        **settings,
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "run.json").write_text("{}")
    (folder / ".lock").write_text("")
    lines = [
        {"step": n, "loss": 1 / n, "prompts_seen": 4 * n, "speed/prompts_per_second": 8.0, "opacity": 0.3}
        for n in range(1, step + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events: list[dict[str, Any]] = [{"time": "2026-01-02T03:04:05+00:00", "step": 0, "note": "started"}]
    if ending is not None:
        events.append({"time": "2026-01-02T03:05:05+00:00", "step": step, "note": ending, "status": ending})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "previews").mkdir()
    Image.new("RGB", (64, 32), (200, 30, 30)).save(folder / "previews" / f"step_{step:06d}.png")
    return folder
