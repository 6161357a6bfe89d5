"""No command reaches for the network unless a setting or an option allows it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from amortized.conditioning import load_text_encoder
from amortized.evaluation import load_clip
from amortized.generation import TextTo3D
from amortized.network import hub_access
from amortized.priors import PriorConfig, load_prior
from tests.rooms import ROOT

HUB = "nobody-here/no-such-model"
PRESET = "configs/quickstart.yaml"
SMALL = ("trainer.prompts_per_process=1", "trainer.views_per_prompt=1", "trainer.render_size=8")


@pytest.fixture
def attempts(monkeypatch, tmp_path) -> list[str]:
    """The attempts to reach the network, all of which fail."""
    made: list[str] = []

    def refuse(*args, **kwargs):
        made.append(str(args))
        raise OSError("the network is unreachable")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return made


@pytest.fixture
def received(trained, tmp_path) -> Path:
    """A run from elsewhere: its config.yaml names models of the Hub, and allows the network itself."""
    run = shutil.copytree(trained, tmp_path / "received")
    text = (run / "config.yaml").read_text()
    prior = next(line for line in text.splitlines() if line.startswith("  path: "))
    text = text.replace(prior, f"  path: {HUB}").replace("allow_network: false", "allow_network: true")
    text = text.replace("  shards: []", "  shards: ['http://models.example/shards']")
    text = text.replace("clip: checkpoints/shapes-clip", "clip: ViT-B-32/laion2b_s34b_b79k")
    assert text.count(HUB) == 1 and "shards: ['http" in text and "laion2b" in text
    (run / "config.yaml").write_text(text)
    return run


@pytest.fixture
def exported_elsewhere(exported, tmp_path) -> Path:
    folder = shutil.copytree(exported, tmp_path / "exported")
    data = json.loads((folder / "config.json").read_text())
    data["text_encoder"]["path"] = HUB
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def folder_that_names_the_hub(prior, tmp_path) -> Path:
    """A local prior whose files name models of the Hub."""
    folder = shutil.copytree(prior, tmp_path / "prior")
    for file in (*folder.rglob("*config.json"), folder / "model_index.json"):
        data = json.loads(file.read_text()) if file.exists() else {}
        data |= {"_name_or_path": HUB, "name_or_path": HUB}
        file.write_text(json.dumps(data))
    return folder


# Placeholders stand for the folders of the fixtures.
COMMANDS = [
    ("train", PRESET, f"prior={HUB}", "--dry-run"),
    ("train", PRESET, f"prior={HUB}", "prior.revision=main", "--dry-run"),
    ("train", PRESET, f"text.encoder={HUB}", "--dry-run"),
    ("train", PRESET, f"corpus={HUB}", "--dry-run"),
    ("train", PRESET, "prior=NAMES_HUB", "--dry-run", *SMALL),
    ("train", PRESET, "text.encoder=NAMES_HUB", "--dry-run", *SMALL),
    ("evaluate", "RECEIVED", "--limit", "1"),
    ("evaluate", "TRAINED", "--limit", "1", "evaluation.clip=ViT-L-14/openai"),
    ("evaluate", "TRAINED", "--limit", "1", "evaluation.clip=ViT-B-16-SigLIP/webli"),
    ("evaluate", "TRAINED", "--prompts", HUB),
    ("evaluate", HUB),
    ("generate", "RECEIVED", "a cube"),
    ("generate", "EXPORTED", "a cube"),
    ("generate", "EXPORTED", "a cube", "--text-encoder", HUB),
    ("generate", HUB, "a cube"),
    ("export", "RECEIVED", "to"),
    ("export", HUB, "to"),
    ("corpora", "show", HUB),
    ("encode", "shapes16", "--encoder", HUB, "--output", "to"),
    ("encode", "shapes16", "--encoder", "NAMES_HUB", "--output", "to"),
    ("doctor", PRESET, f"prior={HUB}", "evaluation.clip=ViT-L-14/openai"),
    ("playground", "--prior", HUB),
    ("convert", "mvdream", "none.pt", "to", "--tokenizer", HUB),
    ("bench", PRESET, f"prior={HUB}", "--only", "step"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_reaches_for_the_network(
    run, attempts, words, tmp_path, trained, received, exported_elsewhere, folder_that_names_the_hub
):
    places = {
        "TRAINED": trained,
        "RECEIVED": received,
        "EXPORTED": exported_elsewhere,
        "NAMES_HUB": folder_that_names_the_hub,
    }
    arguments = []
    for word in words:
        for name, place in places.items():
            word = word.replace(name, str(place))
        arguments.append(str(tmp_path / "to") if word == "to" else word)
    done = run("amortized", *arguments)
    assert not attempts, attempts[:3]
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr
    if "NAMES_HUB" not in " ".join(words):
        assert done.returncode, "nothing was loaded that is not here"
        assert done.stderr.count("\n") <= 1 or "doctor" in words, done.stderr


def test_an_allowed_command_does(run, attempts, monkeypatch):
    """So the test above can fail."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again, with pauses
    done = run("amortized", "train", PRESET, f"prior={HUB}", "prior.allow_network=true", "--dry-run")
    assert attempts and done.returncode == 2


def test_python_does_not_either(attempts, exported_elsewhere, tmp_path):
    """Although the libraries were imported before, with the network."""
    import huggingface_hub.constants as constants

    for load in (
        lambda: load_prior(PriorConfig(path=HUB)),
        lambda: load_text_encoder(HUB),
        lambda: load_clip("ViT-B-32/laion2b_s34b_b79k"),
        lambda: TextTo3D.from_pretrained(HUB),
        lambda: TextTo3D.from_pretrained(exported_elsewhere),
    ):
        with pytest.raises(ValueError):
            load()
        assert not attempts and not constants.HF_HUB_OFFLINE
    assert not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} & set(os.environ), (
        "the user's environment is theirs"
    )


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("chosen", [None, "0", "1"])
def test_variables_and_constants_are_set_inside_only(allowed, chosen, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if chosen is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", chosen)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", chosen == "1")
    before = dict(os.environ)
    with hub_access(allowed):
        assert constants.HF_HUB_OFFLINE is (not allowed or chosen == "1")
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert allowed or os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    assert dict(os.environ) == before and constants.HF_HUB_OFFLINE is (chosen == "1")


def test_a_first_import_inside_does_not_stay_offline(attempts):
    """The library reads its variables once, at its import."""
    code = """
from amortized.network import hub_access
with hub_access(False):
    import huggingface_hub.constants as constants
    assert constants.HF_HUB_OFFLINE
assert not constants.HF_HUB_OFFLINE
with hub_access(True):
    assert not constants.HF_HUB_OFFLINE
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
