"""Runs of every kind of prior at once, through the real command: SDXL, Stable Diffusion 3 and MVDream."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import list_checkpoints, read_part
from tests.commands.runs import small
from tests.tiny_sd import make_tiny_sd
from tests.tiny_sd3 import make_tiny_sd3
from tests.tiny_sdxl import make_tiny_sdxl


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("priors")
    return {
        "sdxl": make_tiny_sdxl(root / "sdxl"),
        "sd3": make_tiny_sd3(root / "sd3"),
        "mvdream": make_tiny_sd(root / "mvdream", num_views=4),
    }


def test_three_teachers_train_and_resume_bit_for_bit(run, folders, tmp_path) -> None:
    folder = tmp_path / "run"
    more = [
        {"prior": str(folders["sd3"]), "guidance": {"method": "vsd", "weight": 0.1}},
        {"prior": str(folders["mvdream"]), "views": {"suffixes": ["", "", "", ""]}},
    ]
    settings = ["trainer.views_per_prompt=4", "cameras.ring=true", "monitoring.preview_scores=false"]
    settings += ["trainer.steps=2", "trainer.prompts_per_process=1", "checkpointing.every=1"]
    command = small(str(folders["sdxl"]), folder, f"more_teachers={json.dumps(more)}", *settings)
    trained = run(*command)
    assert trained.returncode == 0 and "trained at step 2" in trained.stdout, trained.stderr
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all({"guidance", "guidance_2", "guidance_3", "learned"} <= set(line) for line in lines)
    newest = list_checkpoints(folder / "checkpoints")[-1]
    parts = {part: read_part(newest, part) for part in ("generator", "learned")}
    assert all(name.startswith("teacher_2.") for name in parts["learned"])
    shutil.rmtree(newest)
    resumed = run(*command)
    assert resumed.returncode == 0 and "trained at step 2" in resumed.stdout, resumed.stderr
    for part, tensors in parts.items():
        again = read_part(newest, part)
        assert all(torch.equal(value, again[name]) for name, value in tensors.items()), part
    missing = run(*small(str(folders["sdxl"]), folder, "more_teachers=[{prior: checkpoints/nowhere}]"))
    assert missing.returncode == 2 and "checkpoints/nowhere" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1
