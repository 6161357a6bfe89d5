"""`amortized serve` with a trained generator: the pictures and meshes are those of the generator itself."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from amortized.commands import serve
from amortized.commands.trained_on import knowledge_of_run
from amortized.generation import ModelSource, TextTo3D
from amortized.knowledge import read_knowledge
from amortized.media import to_uint8
from amortized.serve.engine import Engine, newer, pinned
from amortized.serve.job import PreviewItem
from tests.rooms import ROOT
from tests.serve.test_server import Running, started


@pytest.fixture(scope="module")
def engine(exported: Path) -> Engine:
    return Engine.load(ModelSource(path=str(exported), is_run=False, device="cpu"))


def test_previews_are_the_generators_pictures_in_any_batch(engine: Engine, exported: Path) -> None:
    model = TextTo3D.from_pretrained(exported, device="cpu")
    items = [
        PreviewItem(prompt=prompt, seed=seed, views=views, size=size)
        for prompt, seed in (("a red cube", 0), ("a blue sphere", 7))
        for views, size in ((2, 16), (1, 24))
    ]
    for item, png in zip(items, engine.preview_batch(items), strict=True):
        scene = model.scenes([item.prompt], item.seed)
        rgb = model.images(scene, model.orbit(num_views=item.views), item.size).rgb[0]
        expected = np.concatenate(list(to_uint8(rgb)), axis=1)
        assert np.abs(np.asarray(Image.open(io.BytesIO(png)), int) - expected).max() <= 1
        assert engine.preview_batch([item]) == [png] or np.allclose(  # alone it is the same, up to rounding
            np.asarray(Image.open(io.BytesIO(engine.preview_batch([item])[0])), int), expected, atol=1
        )


def test_a_preview_between_two_prompts_is_theirs_at_the_ends(engine: Engine) -> None:
    first, second = "a red cube", "a blue sphere"
    way = [
        PreviewItem(prompt=first, seed=0, views=2, size=16, toward=second, position=position)
        for position in (0.0, 0.5, 1.0)
    ]
    ends = [PreviewItem(prompt=prompt, seed=0, views=2, size=16) for prompt in (first, second)]
    pictures = [np.asarray(Image.open(io.BytesIO(png)), int) for png in engine.preview_batch([*way, *ends])]
    assert np.abs(pictures[0] - pictures[3]).max() <= 1 and np.abs(pictures[2] - pictures[4]).max() <= 1
    assert np.abs(pictures[1] - pictures[0]).max() > 1 or np.abs(pictures[3] - pictures[4]).max() <= 1


def test_a_model_knows_its_corpus_with_or_without_its_run(trained: Path, exported: Path) -> None:
    known = read_knowledge(exported)
    assert known is not None and known == knowledge_of_run(trained) and known.number == len(known.prompts)
    engine = Engine.load(ModelSource(path=str(exported), is_run=False, device="cpu"), known)
    assert engine.familiarity(known.prompts[0])["trained"]
    found = engine.familiarity("a corgi")
    assert found["unseen_words"] == ["corgi"] and "corgi" in found["sentences"][0]


def test_a_runs_newest_checkpoint_is_followed(trained: Path, exported: Path) -> None:
    source = pinned(ModelSource(path=str(trained), is_run=True, device="cpu"))
    assert re.fullmatch("step_[0-9]+", source.checkpoint)
    engine = Engine.load(source)
    assert newer(engine) is None
    older = sorted(path.name for path in (trained / "checkpoints").glob("step_*"))[0]
    assert older != source.checkpoint
    engine.source = ModelSource(path=str(trained), is_run=True, checkpoint=older, device="cpu")
    found = newer(engine)
    assert found is not None and found.source == source
    assert newer(Engine.load(ModelSource(path=str(exported), is_run=False, device="cpu"))) is None


def test_the_requests_of_the_page_work_on_a_trained_generator(exported: Path, tmp_path: Path) -> None:
    """The curl commands of docs/service.md in their order, from the start of the command to SIGTERM."""
    page = (ROOT / "docs/service.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"(?ms)^```\n(.*?)^```$", page))
    commands = [line for line in blocks.splitlines() if line.startswith("curl ")]
    assert len(commands) >= 8
    command = [sys.executable, "-m", "amortized.commands.main", "serve", str(exported), "--port", "0"]
    command += ["--store", str(tmp_path / "store"), "--device", "cpu", "--workers", "1"]
    with started(command) as service:
        assert service.port and " serves exported; " in service.address
        variables = {"$ID": "", "$BATCH": ""}
        for line in commands:
            for name, value in variables.items():
                line = line.replace(name, value)
            status, body = replay(service, line)
            assert status in (200, 202, 204), (line, status, body[:500])
            if "object.glb" in line:
                assert body.startswith(b"glTF\2\0\0\0")
            if "/events" in line:
                assert b"event: done" in body
            for name, route in (("$ID", "/v1/objects -H"), ("$BATCH", "/v1/batches -H")):
                variables[name] = json.loads(body)["id"] if route in line else variables[name]
        returncode, _, err = service.stop()
    assert returncode == 0
    assert [json.loads(line)["event"] for line in err.splitlines()][-2:] == ["draining", "stopped"]


def replay(service: Running, command: str) -> tuple[int, bytes]:
    """Send what a curl command sends, with small settings, so that it takes a second."""
    words = shlex.split(command)
    url = next(word for word in words if word.startswith("http://127.0.0.1:8000/"))
    data = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
    if data is not None:
        assert "Content-Type: application/json" in words
        small = {"size": "64x64"} if "images" in url else {"size": 64, "views": 1}
        data |= {} if "familiarity" in url else small
        data |= {"resolution": 64, "texture": 256, "faces": 500} if "formats" in data else {}
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if data is not None else "GET"
    return service(method, url.removeprefix("http://127.0.0.1:8000"), data)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: give a --token-file"),
        (["--token-file", "nothing.txt"], "cannot read nothing.txt"),
        (["--host", "no.such.address.invalid", "--token-file", "tokens.txt"], "cannot listen on"),
        (["--port", "70000"], "--port must be at most 65,535"),
    ],
)
def test_a_mistake_is_one_sentence(run, exported, tmp_path, monkeypatch, words, sentence) -> None:
    (tmp_path / "tokens.txt").write_text("me 0123456789abcdef\n")
    words = [str(tmp_path / word) if word == "tokens.txt" else word for word in words]
    done = run("amortized", "serve", str(exported), "--device", "cpu", "--store", str(tmp_path / "s"), *words)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == 2 and len(lines) == 1 and sentence in lines[0]


def test_a_missing_package_is_one_sentence(run, monkeypatch) -> None:
    real = serve.importlib.util.find_spec
    monkeypatch.setattr(
        serve.importlib.util, "find_spec", lambda name: None if name == "prometheus_client" else real(name)
    )
    done = run("amortized", "serve", "outputs/quickstart")
    assert done.returncode == 2 and "amortized3d[serve]" in done.stderr and "prometheus-client" in done.stderr


@pytest.mark.parametrize("display", [None, ":0"])
def test_without_a_folder_it_serves_the_small_generator_and_opens_its_page(
    run, monkeypatch, tmp_path, display
):
    served, opened = [], []

    def pretend(config, loaded, on_listening):
        served.extend(name for name, *_ in loaded.engines)
        on_listening("http://127.0.0.1:1")
        return 0

    monkeypatch.setattr("amortized.serve.server.run", pretend)
    monkeypatch.setattr(serve.webbrowser, "open_new_tab", opened.append)
    monkeypatch.setattr(
        serve, "Thread", lambda target, args, daemon: SimpleNamespace(start=lambda: target(*args))
    )
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    done = run("amortized", "serve", "--open", "--device", "cpu", "--store", str(tmp_path / "store"))
    assert done.returncode == 0 and "http://127.0.0.1:1 serves shapes-generator;" in done.stdout
    assert served == ["shapes-generator"] and opened == (["http://127.0.0.1:1"] if display else [])


def test_sentences_for_the_author_of_a_prompt(engine: Engine) -> None:
    long = engine.familiarity("a red cube " * 36)["sentences"]
    assert any(sentence.startswith("This sentence is longer than the") for sentence in long)
    assert not any("1 of 1" in sentence or "1 prompt" in sentence for sentence in long)
