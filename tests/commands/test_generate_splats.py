"""`amortized generate --format splat`: from any generator, and from a run of splats from start to page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from amortized.generation import TextTo3D
from amortized.splats import read_splat_file, read_splat_ply
from tests.commands.runs import small
from tests.commands.test_generate import files_in, index_of
from tests.rooms import ROOT

QUICK = ("--size", "16", "--views", "2", "--frames", "2")
PROMPT = "a blue sphere"


@pytest.fixture(scope="module")
def splats(prior, tmp_path_factory) -> Path:
    """A finished run of splats, trained without antialiasing."""
    from train import main

    folder = tmp_path_factory.mktemp("splats") / "run"
    _, _, *rest = small(prior, folder)
    more = ["trainer.prompts_per_process=1", "trainer.views_per_prompt=1", f"prompt={PROMPT}"]
    more += ["generator.count=300", "generator.antialias=false", "generator.density_control=null"]
    assert main(["configs/tiny-splats.yaml", *rest, *more]) == 0
    return folder


@pytest.fixture
def generate(run, tmp_path):
    """Calls generate, with small pictures, into tmp_path/"out"."""
    out = ("--output", str(tmp_path / "out"))
    return lambda model, *arguments: run("amortized", "generate", str(model), *QUICK, *arguments, *out)


def test_any_surface_becomes_splats(generate, trained, tmp_path):
    formats = ("--format", "splat,splat-ply", "--splats", "400")
    done = generate(trained, "a", "b", *formats)
    assert done.returncode == 0 and "note: 400 splats for each object" in done.stdout, done.stderr
    folder, model = tmp_path / "out", TextTo3D.from_run(trained, device="cpu")
    for name, entry in index_of(folder).items():
        record = entry["files"]["splat"]
        assert record["splats"] == 400 and record["settings"] == {"splats": 400, "antialias": True}
        ply = read_splat_ply(folder / f"{name}.splats.ply")
        assert ply.means.shape == read_splat_file(folder / f"{name}.splat").means.shape == (1, 400, 3)
        scene = model.scenes([entry["prompt"]])
        sdf, albedo = scene.sdf_and_albedo(ply.means)
        assert sdf.abs().max() < 1e-2
        assert torch.allclose(ply.colors * 0.28209479 + 0.5, albedo, atol=1e-3)
    before = files_in(folder)
    assert "skipped" in generate(trained, "a", "b", *formats).stdout and files_in(folder) == before
    assert generate(trained, "a", "--format", "splat", "--splats", "300").returncode == 0
    changed = {name.partition(".")[2] for name, time in files_in(folder).items() if before.get(name) != time}
    assert changed == {"splat", "json", "html", ""}  # the last is viewer/


def test_the_same_seed_gives_the_same_splats(generate, trained, tmp_path):
    data = []
    for _ in range(2):
        assert generate(trained, "a", "--format", "splat", "--splats", "100").returncode == 0
        (path,) = (tmp_path / "out").glob("*.splat")
        data.append(path.read_bytes())
        path.unlink()
    assert data[0] == data[1]


def test_an_object_without_a_surface_is_listed_and_the_others_are_made(
    generate, trained, tmp_path, monkeypatch
):
    whole = TextTo3D.splats

    def fails(model, prompt, seed=0, **count):
        if prompt == "nothing":
            raise ValueError("the scene has almost no surface")
        return whole(model, prompt, seed, **count)

    monkeypatch.setattr(TextTo3D, "splats", fails)
    done = generate(trained, "nothing", "b", "--format", "splat", "--splats", "50")
    assert done.returncode == 1 and "note: 'nothing' has no asset: the scene has almost" in done.stdout
    assert [entry["prompt"] for entry in index_of(tmp_path / "out").values()] == ["b"]


def test_a_full_disk_is_one_sentence(generate, trained, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amortized.splats.write_splat_file", full)
    failed = generate(trained, "a", "--format", "splat", "--splats", "50")
    assert failed.returncode == 2 and "No space left on device" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr


def test_a_run_of_splats_writes_its_own(generate, splats, tmp_path):
    done = generate(splats)
    assert done.returncode == 0 and "note: 300 splats for each object" in done.stdout, done.stderr
    folder, scene = tmp_path / "out", TextTo3D.from_run(splats, device="cpu").splats(PROMPT)
    ((name, entry),) = index_of(folder).items()
    assert entry["prompt"] == PROMPT and set(entry["files"]) == {"png", "mp4", "splat"}
    assert generate(splats, PROMPT, "--format", "splat-ply").returncode == 0
    stored = read_splat_ply(folder / f"{name}.splats.ply", scene.bounding_radius)
    for key in ("means", "log_scales", "logits", "colors"):
        assert torch.allclose(getattr(stored, key), getattr(scene, key), atol=1e-6)
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert f"viewer/viewer.html#{name}.splat=&amp;classic={name}.splat" in html  # as it was trained
    assert (folder / f"viewer/{name}.splat.js").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--splats", "9"), "--splats is for generators of surfaces"),
        (("--splats", "0"), "--splats must be at least 1"),
        (("a red cube",), f"is one object, '{PROMPT}', and ignores the text 'a red cube'"),
        ((PROMPT, "a cone", "--interpolate"), "is one object"),
        ((PROMPT, "a cone", "--interpolate", "--format", "splat"), "makes pictures and videos, no splat"),
    ],
)
def test_mistakes_are_one_sentence(generate, splats, tmp_path, arguments, sentence):
    failed = generate(splats, *arguments)
    assert failed.returncode == 2 and sentence in failed.stderr and failed.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_evaluations_of_splats_show_their_splats(run, splats, trained, tmp_path):
    settings = ["evaluation.views=2", "evaluation.turntable_frames=2", "evaluation.grid=16"]
    settings += [f"evaluation.clip={ROOT / 'checkpoints/shapes-clip'}"]
    folders = [tmp_path / "splats", tmp_path / "sdf"]
    for model, folder in zip((splats, trained), folders, strict=True):
        done = run("evaluate.py", str(model), "--prompt", PROMPT, "--output", str(folder), *settings)
        assert done.returncode == 0, done.stderr
    (row,) = json.loads((folders[0] / "results.json").read_text())["prompts"]
    assert row["object"].endswith(".splat") and row["antialias"] is False
    assert read_splat_file(folders[0] / row["object"]).means.shape == (1, 300, 3)
    html = (folders[0] / "index.html").read_text(encoding="utf-8")
    assert "classic=" in html and ">splats</a>" in html
    page = tmp_path / "page"
    assert run("amortized", "compare", *map(str, folders), "--output", str(page)).returncode == 0
    html = (page / "index.html").read_text(encoding="utf-8")
    assert "classic=" in html and html.count("Splats have no surface") == 1
    assert {path.suffix for path in (page / "objects").iterdir()} >= {".splat"}
