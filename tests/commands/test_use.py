"""A trained generator in use: export, generate, and the exported folder on its own elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amortized.generation import TextTo3D
from amortized.generation.exporting import export
from amortized.names import slug
from tests.rooms import ROOT
from tests.tiny_sd import make_tiny_sd

USE_ELSEWHERE = """
import sys, torch
from amortized.generation import TextTo3D
folder, encoder = sys.argv[1:3]
model = TextTo3D.from_pretrained(folder, text_encoder=encoder, device="cpu")
scene = model.scenes(["a red cube", "a blue cone"])
torch.save(model.images(scene, model.orbit(2, 3), 16).rgb, sys.argv[3])
"""


QUICK = ("--size", "16", "--views", "2", "--frames", "2")


def test_generate_writes_pictures_and_an_index(run, trained, tmp_path):
    output = tmp_path / "pictures"
    arguments = (str(trained), "a red cube", "<b>=1", "--output", str(output), "--seeds", "2", *QUICK)
    generated = run("amortized", "generate", *arguments)
    assert generated.returncode == 0 and "4 objects in" in generated.stdout, generated.stderr
    index = json.loads((output / "index.json").read_text())
    assert [(entry["prompt"], entry["seed"]) for entry in index] == [
        ("a red cube", 0),
        ("a red cube", 1),
        ("<b>=1", 0),
        ("<b>=1", 1),
    ]
    for entry in index:
        assert entry["strip"] == f"{entry['slug']}_{entry['seed']}.png" and entry["slug"] == slug(
            entry["prompt"]
        )
        for kind in ("strip", "turntable"):
            assert (output / entry[kind]).stat().st_size > 100
    # A later call adds to the index; the same prompt again replaces its entry.
    arguments = (str(trained), "a red cube", "a cone", "--output", str(output), *QUICK)
    assert run("amortized", "generate", *arguments).returncode == 0
    later = json.loads((output / "index.json").read_text())
    assert later[:4] == index and [entry["prompt"] for entry in later[4:]] == ["a cone"]


@pytest.mark.parametrize("index", ["mine", "{}", "[1]", '[{"id": "0", "strip": "strips/a.png"}]'])
def test_generate_does_not_replace_an_index_of_others(run, trained, tmp_path, index):
    (tmp_path / "index.json").write_text(index)
    refused = run("amortized", "generate", str(trained), "a cube", "--output", str(tmp_path), *QUICK)
    assert refused.returncode == 2 and "was not written by generate" in refused.stderr
    assert refused.stderr.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert (tmp_path / "index.json").read_text() == index


def test_generate_on_a_full_disk_is_one_sentence_and_lists_what_is_there(run, trained, tmp_path, monkeypatch):
    from amortized import media

    save, calls = media.save_turntable, []

    def fail_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr("amortized.media.save_turntable", fail_second)
    failed = run("amortized", "generate", str(trained), "a", "b", "c", "--output", str(tmp_path), *QUICK)
    assert failed.returncode == 2 and "No space left on device" in failed.stderr
    assert "Traceback" not in failed.stderr
    (entry,) = json.loads((tmp_path / "index.json").read_text())
    assert entry["prompt"] == "a" and (tmp_path / entry["turntable"]).exists()


def test_generate_from_an_export(run, exported, tmp_path):
    arguments = (str(exported), "a red cube", "--output", str(tmp_path / "pictures"), *QUICK)
    generated = run("amortized", "generate", *arguments)
    assert generated.returncode == 0 and "1 object in" in generated.stdout, generated.stderr


def test_generate_mistakes_are_one_sentence_and_status_2(run, trained, exported):
    for arguments, sentence in (
        ((str(trained),), "there is nothing to generate: give a PROMPT"),
        ((str(trained), "a cube", "--seeds", "0"), "--seeds must be at least 1, got 0"),
        ((str(trained), "a cube", "--frames", "-1"), "--frames must be at least 0, got -1"),
        ((str(trained), "a cube", "--text-encoder", "x"), "--text-encoder is for exported folders"),
        ((str(trained), "a cube", "--checkpoint", "step_9"), "step_9"),
        ((str(exported), "a cube", "--checkpoint", "best"), "--checkpoint is for runs"),
        (("some/where", "a cube"), "'some/where' is neither a folder nor a Hub id in the local cache"),
    ):
        failed = run("amortized", "generate", *arguments)
        assert failed.returncode == 2 and sentence in failed.stderr, failed.stderr
        assert failed.stderr.count("\n") == 1


def test_an_export_describes_itself_and_is_written_once(run, trained, exported, prior):
    data = json.loads((exported / "config.json").read_text())
    assert data["scenes"]["sharpness"] == pytest.approx(200) and data["text_encoder"]["path"] == prior
    card = (exported / "README.md").read_text()
    assert "shapes16" in card and "Apache-2.0" in card and "| steps | 4 |" in card
    again = run("amortized", "export", str(trained), str(exported))
    assert again.returncode == 2 and str(exported) in again.stderr


def test_an_export_makes_the_runs_images_elsewhere(trained, exported, prior, tmp_path):
    """A fresh interpreter in another folder makes the run's images, bit for bit, from a copy."""
    shutil.copytree(exported, tmp_path / "model")
    command = [sys.executable, "-c", USE_ELSEWHERE, "model", prior, "images.pt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    elsewhere = torch.load(tmp_path / "images.pt", weights_only=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = TextTo3D.from_run(trained, device="cpu")
    scene = model.scenes(["a red cube", "a blue cone"])
    expected = model.images(scene, model.orbit(2, 3), 16).rgb
    torch.set_num_threads(threads)
    assert elsewhere.shape == (2, 3, 16, 16, 3) and torch.equal(elsewhere, expected)


def test_an_export_needs_its_text_encoder(exported, tmp_path):
    with pytest.raises(ValueError, match="needs the text encoder .* cannot be loaded here: copy the folder"):
        TextTo3D.from_pretrained(exported, text_encoder=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"download it \(hf download some/encoder\)"):
        TextTo3D.from_pretrained(exported, text_encoder="some/encoder")
    other = str(make_tiny_sd(tmp_path / "other_encoder", seed=3))
    with pytest.raises(ValueError, match="was trained with the text encoder .* but .* is another one"):
        TextTo3D.from_pretrained(exported, text_encoder=other)


def test_a_damaged_export_is_one_sentence(exported, prior, tmp_path):
    damaged = Path(shutil.copytree(exported, tmp_path / "model")) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(ValueError, match="model cannot be used .*: export it again from its run"):
        TextTo3D.from_pretrained(damaged.parent)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_is_encoded_at_the_priors_precision(trained, tmp_path, dtype):
    """As in training; else the generator would get other numbers than those it learned from."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    settings = (run / "config.yaml").read_text()
    assert settings.count("dtype: float32") == 1
    (run / "config.yaml").write_text(settings.replace("dtype: float32", f"dtype: {dtype}"))
    model = TextTo3D.from_run(run, device="cpu")
    export(run, tmp_path / "exported")
    for loaded in (model, TextTo3D.from_pretrained(tmp_path / "exported", device="cpu")):
        weights = loaded.texts.prior_encoder.encoder.model.parameters()
        assert {weight.dtype for weight in weights} == {getattr(torch, dtype)}


def test_an_incomplete_config_of_a_run_is_one_sentence(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "config.yaml").write_text("corpus: shapes16\noutput: x\n")
    with pytest.raises(ValueError, match=r"config.yaml of .* cannot be used .trainer is missing.: restore"):
        TextTo3D.from_run(run, device="cpu")


def test_the_readmes_python_runs_as_printed(trained, tmp_path):
    """Except that its images are smaller."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "size=128" in block
    script = block.replace("size=128", "size=16") + "print(tuple(images.shape))"
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/quickstart").symlink_to(trained)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "(2, 4, 16, 16, 3)", done.stderr


def test_a_run_is_evaluated_from_another_folder(run, trained, tmp_path, monkeypatch):
    """Its relative paths are those of the folder in which it was started."""
    start = tmp_path / "start"
    folder = shutil.copytree(trained, start / "outputs/mine")
    (start / "my prompts.txt").write_text("a red cube\n", encoding="utf-8")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^output: .*", "output: outputs/mine", text, flags=re.MULTILINE)
    text = re.sub(r"^corpus: .*", "corpus: my prompts.txt", text, flags=re.MULTILINE)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    (folder / "run.json").unlink()  # which has the digest of the other corpus
    quick = ("evaluation.views=2", "evaluation.turntable_frames=0", "evaluation.grid=16")
    monkeypatch.chdir(tmp_path)
    done = run("evaluate.py", str(folder), *quick)
    assert done.returncode == 0 and "1 prompt," in done.stdout, done.stderr
    (start / "my prompts.txt").unlink()
    failed = run("evaluate.py", str(folder), *quick)
    assert failed.returncode == 2 and "my prompts.txt" in failed.stderr and failed.stderr.count("\n") == 1
