"""A run of one object from start to end, with the real commands, and what is refused at its start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from amortized.generation import TextTo3D
from tests.commands.runs import small
from tests.rooms import ROOT

PRESETS = {"sdf": "configs/tiny-ingp.yaml", "density": "configs/tiny-ingp-density.yaml"}
PROMPT = "a blue sphere"


def command(prior: str, folder, geometry: str, *more: str) -> list[str]:
    script, _, *rest = small(prior, folder)
    overrides = ["trainer.prompts_per_process=1", "trainer.views_per_prompt=2", f"prompt={PROMPT}", *more]
    return [script, PRESETS[geometry], *rest, *overrides]


@pytest.mark.parametrize("geometry", PRESETS)
def test_one_object_is_trained_evaluated_generated_and_exported(run, prior, tmp_path, geometry):
    folder = tmp_path / "run"
    schedule = "generator.grid.open_levels=[1, 4]"
    trained = run(*command(prior, folder, geometry, schedule, "environment.name=shared-hash"))
    assert trained.returncode == 0, trained.stderr
    assert list((folder / "previews").glob("step_000004-a-blue-sphere-*.png"))

    settings = ["evaluation.views=2", "evaluation.turntable_frames=2", "evaluation.grid=16"]
    settings += [f"evaluation.clip={ROOT / 'checkpoints/shapes-clip'}"]
    judged = run("evaluate.py", str(folder), *settings)
    assert judged.returncode == 0, judged.stderr
    results = json.loads((folder / "evaluation/results.json").read_text())
    (row,) = results["prompts"]
    assert row["text"] == PROMPT and 0 < row["iou"] < 1
    assert (folder / "evaluation" / row["object"]).is_file()

    exported = tmp_path / "exported"
    assert run("amortized", "export", str(folder), str(exported)).returncode == 0
    models = [TextTo3D.from_run(folder, device="cpu"), TextTo3D.from_pretrained(exported, device="cpu")]
    images = [model.images(model.scenes(PROMPT), model.orbit(1, 2), 16).rgb for model in models]
    assert torch.equal(*images)
    assert [model.generator.generator.grid.num_open.item() for model in models] == [3, 3]

    for source in (folder, exported):
        output = tmp_path / f"pictures-{source.name}"
        arguments = ("--views", "2", "--size", "16", "--show", "rgb,normal,depth", "--output", str(output))
        made = run("amortized", "generate", str(source), PROMPT, *arguments)
        assert made.returncode == 0 and list(output.glob("*.png")), made.stderr


def test_a_density_has_a_mesh_but_no_surface_to_lay_splats_on(run, prior, tmp_path):
    assert run(*command(prior, tmp_path / "run", "density")).returncode == 0
    small = ("--resolution", "32", "--texture", "32", "--workers", "1", "--output", str(tmp_path / "out"))
    made = run("amortized", "generate", str(tmp_path / "run"), "--format", "ply", *small)
    assert made.returncode == 0 and list((tmp_path / "out").glob("*.ply")), made.stdout
    refused = run("amortized", "generate", str(tmp_path / "run"), "--format", "splat", *small)
    assert refused.returncode == 1 and not list((tmp_path / "out").glob("*.splat"))
    (note,) = [line for line in refused.stdout.splitlines() if "asset:" in line]
    assert "this scene has densities: train it with generator.geometry=sdf" in note


@pytest.mark.parametrize("geometry", PRESETS)
def test_one_object_refuses_another_text(run, prior, tmp_path, geometry):
    folder, exported = tmp_path / "run", tmp_path / "exported"
    assert run(*command(prior, folder, geometry)).returncode == 0
    assert run("amortized", "export", str(folder), str(exported)).returncode == 0
    for model in (folder, exported):
        out = ("--format", "png", "--size", "16", "--output", str(tmp_path / f"of {model.name}"))
        for texts in (["a red cube"], [PROMPT, "a red cube"]):
            refused = run("amortized", "generate", str(model), *texts, *out)
            assert refused.returncode == 2 and refused.stderr.count("\n") == 1
            assert f"is one object, '{PROMPT}', and ignores the text 'a red cube'" in refused.stderr
            assert not Path(out[-1]).exists()
        for texts in (
            [],
            ["A blue  sphere."],
        ):  # its own, in any spelling
            assert run("amortized", "generate", str(model), *texts, *out).returncode == 0
        assert len(list(Path(out[-1]).glob("*.png"))) == 1
    refused = run("evaluate.py", str(folder), "--prompt", "a red cube")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"is one object, '{PROMPT}', and ignores the text 'a red cube'" in refused.stderr


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["prompt=null"], 'has 16 training prompts: set prompt="...", or use another generator'),
        (["trainer.prompts_per_process=16"], "generator.name=ingp is one object: set trainer.prompts"),
        (["generator.geometry=density"], "losses.eikonal and losses.inside need signed distances, which"),
    ],
)
def test_a_start_is_refused_before_anything_is_loaded(run, tmp_path, overrides, sentence):
    refused = run(*command("nowhere", tmp_path / "run", "sdf", *overrides))
    assert refused.returncode == 2 and sentence in refused.stderr
    assert "nowhere" not in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
