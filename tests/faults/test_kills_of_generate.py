"""Assets in several processes, of which the first is killed at arbitrary moments, are those of one call."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.test_kills import finish, start
from tests.faults.whole import broken_files, final_files
from tests.tiny_sd import make_tiny_sd

KILLS = 8
COLORS, SHAPES = ("red", "green", "blue", "yellow"), ("cube", "sphere", "cone", "cylinder")


def contents(folder: Path) -> dict[str, Any]:
    """The files by name; of the reports and the index all but the seconds."""
    found: dict[str, Any] = {}
    for path in final_files(folder):
        if path.name == "index.json":
            entries = json.loads(path.read_text(encoding="utf-8"))
            found[path.name] = {entry["name"]: entry for entry in entries}
        elif path.suffix == ".json":
            found[path.name] = {**json.loads(path.read_text(encoding="utf-8")), "seconds": None}
        elif path.suffix != ".html":
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_generate_change_no_file_and_leave_no_process(tmp_path: Path) -> None:
    prior = make_tiny_sd(tmp_path / "prior", prediction_type="v_prediction")
    run, rng, killed = tmp_path / "run", random.Random(2), 0
    train = ["train.py", "configs/quickstart.yaml", f"prior={prior}", f"output={run}", "trainer.steps=3"]
    finish(*train, "trainer.prompts_per_process=2", "trainer.render_size=16", "monitoring.preview_prompts=1")
    prompts = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
    generate = ["-m", "amortized.commands.main", "generate", str(run), *prompts, "--workers", "2"]
    generate += ["--format", "glb,stl", "--resolution", "48", "--faces", "500", "--texture", "128"]
    folders = tmp_path / "cut", tmp_path / "uninterrupted"
    while killed < KILLS:
        process = start(*generate, "--output", str(folders[0]))
        before, delay = len(list(folders[0].glob("*.glb"))), rng.uniform(0, 1)
        while process.poll() is None and len(list(folders[0].glob("*.glb"))) <= before:
            time.sleep(0.01)
        time.sleep(delay)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        killed += bool(children)
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == [] and broken_files(folders[0]) == []
    made = len([path for path in final_files(folders[0]) if path.suffix == ".glb"])
    assert 0 < made < len(prompts), "the kills came too late, or every one lost all"
    for folder in folders:
        finish(*generate, "--output", str(folder))
    cut, expected = map(contents, folders)
    # GLB, its script, STL and report of each; the index, and four files of the viewer.
    assert cut == expected and len(expected) == 4 * len(prompts) + 5
