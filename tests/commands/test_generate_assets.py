"""`amortized generate --format glb,...`: files of every format, in one process or in several."""

from __future__ import annotations

import argparse
import json
import os
import signal
import zipfile
from pathlib import Path
from typing import get_args

import pytest
import trimesh

from amortized.assets import FORMATS, SUFFIXES, AssetConfig, AssetError
from amortized.assets.clean import Keep
from amortized.commands import asset_options, asset_pool, generated
from amortized.commands.asset_options import AssetJob
from amortized.commands.asset_pool import AssetFiles, make_assets
from amortized.generation import ModelSource
from amortized.names import slug
from tests.commands.test_generate import HOSTILE, files_in, index_of

SMALL = ("--resolution", "32", "--faces", "500", "--texture", "64", "--workers", "1")
ALL = ("glb", "ply", "obj", "stl", "3mf")


@pytest.fixture
def generate(run, trained, tmp_path):
    """Calls generate for the run with small assets, into tmp_path/"out"."""

    def call(*arguments: str, model: Path = trained):
        return run("amortized", "generate", str(model), *SMALL, *arguments, "--output", str(tmp_path / "out"))

    return call


def test_it_writes_every_format_and_a_report(generate, tmp_path):
    done = generate("a red cube", "--format", "png," + ",".join(ALL), "--size", "16", "--license", "CC0-1.0")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out"
    ((name, entry),) = index_of(folder).items()
    assert set(entry["files"]) == {"png", *ALL}
    assert files_in(folder).keys() == {made["file"] for made in entry["files"].values()} | {
        "index.json",
        "index.html",
        "viewer",
        f"{name}.json",
    }
    mesh = trimesh.load(folder / f"{name}.glb", force="mesh")
    assert 100 < len(mesh.faces) <= 500
    printed = trimesh.load(folder / f"{name}.stl")
    assert printed.is_watertight and printed.extents[2] == pytest.approx(60, rel=1e-3)
    assert len(zipfile.ZipFile(folder / f"{name}.obj.zip").namelist()) == 3
    report = json.loads((folder / f"{name}.json").read_text())
    assert report["prompt"] == "a red cube" and report["watertight"] and report["faces"] <= 500
    assert report["model"] == entry["files"]["glb"]["model"]
    assert "CC0-1.0" in (folder / f"{name}.glb").read_bytes().decode("latin-1")


def test_what_is_complete_is_skipped_and_changed_settings_make_the_files_they_concern(generate, tmp_path):
    assert generate("a", "b", "--format", "glb,stl").returncode == 0
    before = files_in(tmp_path / "out")
    again = generate("a", "b", "--format", "glb,stl")
    assert "2 objects in" in again.stdout and "skipped" in again.stdout
    assert files_in(tmp_path / "out") == before
    assert generate("a", "b", "--format", "glb,stl", "--height-mm", "80").returncode == 0
    after = files_in(tmp_path / "out")
    changed = {name.rpartition(".")[2] for name in after if after[name] != before[name]}
    assert changed == {"stl", "json", "html"}


def test_hostile_prompts_are_metadata_only(generate, tmp_path):
    texts = [text for kind, text in HOSTILE.items() if kind != "option"]
    done = generate(*texts, "--format", "glb,3mf,obj")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out"
    index = index_of(folder)
    assert len(index) == len(texts)
    for name, entry in index.items():
        assert name == f"{slug(entry['prompt'])}_0"
        trimesh.load(folder / f"{name}.glb")
        trimesh.load(folder / f"{name}.3mf")
        members = zipfile.ZipFile(folder / f"{name}.obj.zip").namelist()
        assert all("/" not in member and ".." not in member for member in members)
    assert {path.parent for path in tmp_path.rglob("*.glb")} == {folder}


def test_objects_without_a_surface_are_listed_and_the_others_made(generate, monkeypatch, tmp_path):
    make = asset_pool.make_asset

    def fails(scene, config, source, device):
        if source.prompt == "nothing":
            raise AssetError("the object is empty")
        return make(scene, config, source, device)

    monkeypatch.setattr(asset_pool, "make_asset", fails)
    done = generate("a", "nothing", "b", "--format", "glb")
    assert done.returncode == 1
    assert "note: 'nothing' has no asset: the object is empty" in done.stdout
    assert "3 objects in" in done.stdout and "1 without an asset" in done.stdout
    assert [entry["prompt"] for entry in index_of(tmp_path / "out").values()] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a", "--format", "fbx"), "must be of png, mp4, webp, glb, ply, obj, stl, 3mf, usdz"),
        (("a", "--format", "glb", "--faces", "-1"), "must be at least 0"),
        (("a", "--format", "glb", "--texture", "20000"), "must be at most 16,384"),
        (("a", "--format", "glb", "--resolution", "4"), "must be at least 16"),
        (("a", "--format", "stl", "--wall-mm", "0"), "must be at least 0.1"),
        (("a", "b", "--interpolate", "--format", "mp4,glb"), "makes pictures and videos, no glb"),
    ],
)
def test_mistakes_are_one_sentence(generate, tmp_path, arguments, sentence):
    failed = generate(*arguments)
    assert failed.returncode == 2 and sentence in failed.stderr and failed.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_one_sentence_that_names_the_extra(generate, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "xatlas", None)
    failed = generate("a", "--format", "glb")
    assert failed.returncode == 2 and "pip install xatlas" in failed.stderr and "assets" in failed.stderr
    assert failed.stderr.count("Traceback") == 0
    assert generate("a", "--format", "ply").returncode == 0  # without a texture it is not needed


def test_a_refused_file_is_a_reason_and_the_other_objects_are_made(generate, monkeypatch, tmp_path):
    """E.g. a body that STL cannot hold: the batch goes through."""
    save = asset_pool.save_asset

    def refuses(asset, path, format, **options):
        if asset.source.prompt == "loose" and format == "stl":
            raise AssetError("cannot write STL: two bodies")
        return save(asset, path, format, **options)

    monkeypatch.setattr(asset_pool, "save_asset", refuses)
    done = generate("loose", "b", "--format", "glb,stl")
    assert done.returncode == 1 and "note: 'loose' has no asset: cannot write STL" in done.stdout
    assert [entry["prompt"] for entry in index_of(tmp_path / "out").values()] == ["b"]


def test_the_files_of_an_object_are_recorded_together(generate, monkeypatch):
    """Else a kill between them would leave a report of the last one alone."""
    write, written = generated.atomic_write_text, []

    def spy(path, text):
        written.append(json.loads(text))
        write(path, text)

    monkeypatch.setattr(generated, "INDEX_EVERY_S", 0.0)
    monkeypatch.setattr(generated, "SHARE_OF_TIME", 1e9)
    monkeypatch.setattr(generated, "atomic_write_text", spy)
    assert generate("a", "b", "--format", "glb,stl").returncode == 0
    assert [len(entries) for entries in written][:2] == [1, 2]
    assert all(set(entry["files"]) == {"glb", "stl"} for entries in written for entry in entries)


def test_only_what_is_missing_is_computed(generate, tmp_path):
    assert generate("a", "--format", "glb").returncode == 0
    assert generate("a", "--format", "glb,stl").returncode == 0
    (report,) = (path for path in (tmp_path / "out").glob("*.json") if path.name != "index.json")
    stages = json.loads(report.read_text(encoding="utf-8"))
    assert "texture" not in stages["seconds"] and stages["evaluations"]["printable"] > 0


def test_the_options_are_those_of_the_assets():
    """The command line repeats them, so that --help need not import PyTorch."""
    assert asset_options.FORMATS == tuple(FORMATS)
    assert {name: asset_options.SUFFIXES.get(name, f".{name}") for name in FORMATS} == SUFFIXES
    assert asset_options.KEEP == get_args(Keep)
    parser = argparse.ArgumentParser()
    asset_options.add_asset_arguments(parser)
    config = asset_options.asset_config(parser.parse_args([]), ["glb"])
    assert config == AssetConfig()


# ---- several processes ------------------------------------------------------------------------


@pytest.fixture
def pool(trained, tmp_path):
    source = ModelSource(path=str(trained), is_run=True, device="cpu")
    config = AssetConfig(resolution=32, faces=500, texture=64, printable=True)
    jobs = [
        AssetJob(name=name, prompt=name, seed=0, formats=("glb", "stl"), config=config)
        for name in ("a", "b", "c")
    ]

    def make(folder: str, workers: int):
        files = AssetFiles(
            folder=tmp_path / folder,
            license="",
            options={},
        )
        return make_assets(source, source.load(), jobs, files, workers)

    return make


def test_several_processes_write_the_bytes_of_one(pool, tmp_path):
    alone, together = list(pool("alone", 1)), list(pool("together", 2))
    assert [job.name for job, _ in alone] == ["a", "b", "c"] == sorted(job.name for job, _ in together)
    for suffix in ("glb", "stl"):
        for name in ("a", "b", "c"):
            one, other = (tmp_path / folder / f"{name}.{suffix}" for folder in ("alone", "together"))
            assert one.read_bytes() == other.read_bytes()


def test_a_killed_worker_is_one_sentence(pool):
    import multiprocessing

    made = pool("killed", 2)
    next(made)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="one of 2 worker processes was killed.*--workers"):
        list(made)
    assert not multiprocessing.active_children()


def test_without_shared_memory_one_worker_is_the_remedy(pool, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(asset_pool, "ProcessPoolExecutor", refuse)
    with pytest.raises(ValueError, match=r"cannot share memory \(Permission denied\).*--workers 1"):
        next(pool("refused", 2))
