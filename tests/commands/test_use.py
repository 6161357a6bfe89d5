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
from safetensors.torch import save_file

from amortized.generation import TextTo3D
from amortized.generation.exporting import export
from tests.commands.runs import small
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
    quick = (
        "evaluation.views=2",
        "evaluation.turntable_frames=0",
        "evaluation.objects=0",
        "evaluation.grid=16",
    )
    monkeypatch.chdir(tmp_path)
    done = run("evaluate.py", str(folder), *quick)
    assert done.returncode == 0 and "1 prompt," in done.stdout, done.stderr
    (start / "my prompts.txt").unlink()
    failed = run("evaluate.py", str(folder), *quick)
    assert failed.returncode == 2 and "my prompts.txt" in failed.stderr and failed.stderr.count("\n") == 1


def test_a_run_finds_its_text_encoder_where_it_was_started(trained, prior, tmp_path, monkeypatch):
    """Its relative path is tried in the working directory first, then in the folder of the start."""
    start = tmp_path / "elsewhere"
    folder = shutil.copytree(trained, start / "outputs/mine")
    shutil.copytree(prior, start / "models/sd")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^output: .*", "output: outputs/mine", text, flags=re.MULTILINE)
    assert text.count(prior) == 1
    (folder / "config.yaml").write_text(text.replace(prior, "models/sd"), encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    expected, found = (TextTo3D.from_run(path, device="cpu") for path in (trained, folder))
    assert found.identity == expected.identity
    export(folder, tmp_path / "exported")
    TextTo3D.from_pretrained(tmp_path / "exported", device="cpu")
    shutil.rmtree(start / "models")
    with pytest.raises(ValueError, match="needs the text encoder 'models/sd'"):
        TextTo3D.from_run(folder)


def test_loras_and_tokens_of_the_text_encoder_belong_to_the_generator(run, prior, tmp_path):
    """A run and its export load them again, and refuse others; the run resumes only with the same ones."""
    files = [tmp_path / "lora.safetensors", tmp_path / "token.safetensors"]
    query = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    ends = {"lora_down.weight": torch.ones(2, 32), "lora_up.weight": torch.ones(32, 2)}
    save_file({f"{query}.{end}": value for end, value in ends.items()}, files[0])
    save_file({"<cat>": torch.ones(2, 32)}, files[1])
    added = [f"prior.loras=[{files[0]}]", "prior.lora_scales=[0.3]", f"prior.tokens=[{files[1]}]"]
    script, *arguments = small(prior, tmp_path / "run")
    assert run(script, *arguments, "trainer.steps=1", *added).returncode == 0
    refused = run(script, *arguments, "trainer.steps=1", "prior.lora_scales=[0.4]", *added[::2])
    assert refused.returncode == 2 and "another prior" in refused.stderr
    trained = TextTo3D.from_run(tmp_path / "run", device="cpu")
    assert run("amortized", "export", str(tmp_path / "run"), str(tmp_path / "out")).returncode == 0
    exported = TextTo3D.from_pretrained(tmp_path / "out", device="cpu")
    pooled = [model.texts.generator_text(["a <cat>"]).pooled for model in (trained, exported)]
    assert torch.equal(*pooled)
    save_file({"<cat>": torch.zeros(2, 32)}, files[1])
    with pytest.raises(ValueError, match="is another one"):
        TextTo3D.from_pretrained(tmp_path / "out", device="cpu")
