"""A model folder with code in it: every command that reads it refuses in one line, and runs nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.commands.runs import small
from tests.model_folders.families import ROOT
from tests.model_folders.test_refusals import CODE


@pytest.fixture(scope="module")
def hostile(prior, tmp_path_factory) -> Path:
    """A prior, and a CLIP in `clip`, whose configs name a class of a file that writes `ran`."""
    folder = tmp_path_factory.mktemp("hostile") / "prior"
    shutil.copytree(prior, folder)
    shutil.copytree(ROOT / "checkpoints/shapes-clip", folder / "clip")
    for part in ("tokenizer", "text_encoder", "unet", "clip"):
        (folder / part / "evil.py").write_text(CODE)
        for file in (folder / part).glob("*config.json"):
            data = json.loads(file.read_text())
            if file.name == "open_clip_config.json":
                data["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
            else:
                data["auto_map"] = {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}
            file.write_text(json.dumps(data))
    return folder


def test_every_command_refuses_it(run, hostile, trained, exported, prior, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    _, *training = small(str(hostile), tmp_path / "run")
    received = tmp_path / "received"
    shutil.copytree(trained, received)
    config = received / "config.yaml"
    config.write_text(config.read_text().replace(str(prior), str(hostile)))
    clip = f"evaluation.clip={hostile / 'clip'}"
    for words, refused in (
        (("train.py", *training), "auto_map"),
        (("evaluate.py", str(trained), "--limit", "1", clip), "trust_remote_code"),
        (("evaluate.py", str(received), "--limit", "1"), "auto_map"),
        (("amortized", "generate", str(received), "a cube", "--output", str(tmp_path / "out")), "auto_map"),
        (
            (
                "amortized",
                "generate",
                str(exported),
                "a cube",
                "--text-encoder",
                str(hostile),
                "--output",
                str(tmp_path),
            ),
            "auto_map",
        ),
        (
            ("amortized", "encode", "shapes16", "--encoder", str(hostile), "--output", str(tmp_path / "t")),
            "auto_map",
        ),
        (
            ("amortized", "playground", "--prior", str(hostile), "--output", str(tmp_path / "play.png")),
            "auto_map",
        ),
        (("amortized", "doctor", f"prior={hostile}"), "auto_map"),
        (("amortized", "doctor", clip), "trust_remote_code"),
    ):
        shown = run(*words)
        assert shown.returncode == (1 if "doctor" in words else 2), (words, shown.stderr)
        text = shown.stdout if "doctor" in words else shown.stderr
        lines = [line for line in text.splitlines() if refused in line]
        assert len(lines) == 1, (words, text)
        line = lines[0]
        assert "Traceback" not in shown.stderr and "is refused" in line, words
    assert not list(hostile.rglob("ran"))
