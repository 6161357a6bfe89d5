"""The generator in checkpoints/, which answers before anything is trained."""

from __future__ import annotations

import hashlib
import json

import torch

from amortized.evaluation.clip import load_clip
from amortized.evaluation.metrics import text_scores
from amortized.generation import TextTo3D
from amortized.knowledge import knowledge_of, read_knowledge
from corpora import open_corpus
from tests.rooms import ROOT

FOLDER = ROOT / "checkpoints/shapes-generator"
PROMPTS = ["a red cube", "an orange sphere", "a cyan torus", "a purple cone"]


def test_its_files_are_those_that_it_lists_and_it_knows_its_corpus():
    files = json.loads((FOLDER / "config.json").read_text())["files"]
    assert files.keys() == {"model.safetensors", "prompts.json"}
    for name, file in files.items():
        data = (FOLDER / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    assert files["model.safetensors"]["bytes"] < 2_000_000
    known = read_knowledge(FOLDER)
    assert known is not None
    assert (
        known is not None
        and known == knowledge_of(open_corpus("shapes16"))
        and len(known.prompts) == known.number == 16
    )


def test_each_prompt_is_recognized_among_all_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # its text encoder is found in the project
    model = TextTo3D.from_pretrained(FOLDER, device="cpu")
    images = model.images(model.scenes(PROMPTS), model.orbit(num_views=2), size=64).rgb
    clip, gallery = load_clip(ROOT / "checkpoints/shapes-clip"), knowledge_of(open_corpus("shapes16")).prompts
    column = torch.tensor([gallery.index(prompt) for prompt in PROMPTS])
    _, recall = text_scores(clip.encode_images(images.flatten(0, 1)), clip.encode_texts(gallery), column)
    assert recall.tolist() == [1.0] * len(PROMPTS)
