"""Scores of previews: right, logged where they belong, and without any effect on the training."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amortized.commands import compose
from amortized.evaluation import EvaluatedModel, EvaluationConfig, Gallery, evaluate, load_clip
from amortized.monitoring import PageFacts
from amortized.monitoring.run_page import RunPage
from amortized.names import slug
from amortized.pages import read_history
from amortized.parallel import World
from amortized.training.previews import NUM_VIEWS, SIZE, score_previews
from amortized.types import Prompt, Render
from tests.rooms import ROOT
from tests.training.toy import COLORS, TEXTS, log_lines, make_trainer, weights_of

CLIP = ROOT / "checkpoints/shapes-clip"
MARK = '<span title="CLIP similarity">'  # of a preview on the page
NAMES = ("preview/clip_similarity", "preview/recall_at_1")


class ColorScorer:
    """Stands in for CLIP: an image is its mean color, a text the color it names. Draws random numbers."""

    model = torch.nn.Linear(2, 3)

    def encode_images(self, images):
        torch.rand(7)
        return torch.nn.functional.normalize(images.mean((1, 2)), dim=-1)

    def encode_texts(self, texts):
        named = torch.tensor([next(c for word, c in COLORS.items() if word in text) for text in texts])
        return torch.nn.functional.normalize(named, dim=-1)


class BrokenScorer(ColorScorer):
    def encode_images(self, images):
        raise RuntimeError("CUDA out of memory")


def prompts_of(texts):
    return [Prompt(id=str(number), text=text, split="train") for number, text in enumerate(texts)]


def scored_lines(folder):
    return [line for line in log_lines(folder) if NAMES[0] in line]


# ---- the numbers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    return load_clip(CLIP)


@pytest.mark.parametrize(
    "texts",
    [
        ["a red cube"],
        ["a red cube", "a blue sphere", "a green cone"],
        ["a red cube", "a blue torus", "A  red cube"],  # one text for CLIP
    ],
)
def test_scores_are_those_of_clip_and_of_the_evaluation(clip, texts, tmp_path):
    prompts = prompts_of(texts)
    views = torch.rand(len(texts), 3, 32, 32, 3, generator=torch.Generator().manual_seed(len(texts)))
    scores = score_previews(clip, prompts, views)
    # 1. One image and one text at a time, in plain Python.
    distinct = list(dict.fromkeys(" ".join(text.lower().split()) for text in texts))
    rows = [clip.encode_texts([text])[0].double().numpy() for text in distinct]
    cosines, hits = [], []
    for text, some in zip(texts, views, strict=True):
        own = distinct.index(" ".join(text.lower().split()))
        images = [clip.encode_images(view[None])[0].double().numpy() for view in some]
        cosines.append(np.mean([image @ rows[own] for image in images]))
        hits.append(np.mean([all(image @ rows[own] > image @ row for k, row in enumerate(rows) if k != own)
                             for image in images]))  # fmt: skip
    assert scores["clip_similarity"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert scores.get("recall_at_1") == (pytest.approx(np.mean(hits)) if len(distinct) > 1 else None)
    # 2. The evaluator, which is made to render the same images.
    by_id = dict(zip([prompt.id for prompt in prompts], views, strict=True))

    def render(scene, cameras, height, width):
        rgb = torch.stack([by_id[one.id] for one in scene])
        return Render(rgb=rgb, opacity=rgb[..., 0], depth=rgb[..., 0])

    found = evaluate(
        EvaluatedModel(scene_for=lambda some: some, render=render),  # type: ignore[arg-type]
        prompts,
        gallery=Gallery(texts),
        truth_for=lambda prompt: None,
        scorer=clip,
        config=EvaluationConfig(views=3, image_size=32, turntable_frames=0, prompts_per_batch=2),
        folder=tmp_path,
    )
    assert scores["clip_similarity"] == pytest.approx(
        np.mean([row.clip_similarity for row in found]), abs=1e-6
    )
    if len(distinct) > 1:
        assert scores["recall_at_1"] == pytest.approx(np.mean([row.recall_at_1 for row in found]))


# ---- in a training ----------------------------------------------------------------------------


def test_the_training_is_the_same_and_logs_the_scores_of_its_pictures(tmp_path, capfd):
    options = {"monitoring": {"preview_every": 2}, "checkpointing": {"every": 2}, "steps": 6}
    plain, scored = (make_trainer(tmp_path / name, scorer=scorer, **options)
                     for name, scorer in (("plain", None), ("scored", ColorScorer())))  # fmt: skip
    plain.train(quiet=True)
    scored.train()
    assert "cannot" not in capfd.readouterr().out
    expected, lines = weights_of(plain), log_lines(tmp_path / "scored")
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(scored).items())
    assert [line for line in lines if NAMES[0] not in line] == log_lines(tmp_path / "plain")
    # A score stands behind its step, on a line for itself, and belongs to the picture of that step.
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    scores = scored_lines(tmp_path / "scored")
    assert all(set(line) == {"step", *NAMES} for line in scores)
    for line in scores:
        cosines, hits = [], []
        for text in TEXTS:
            path = tmp_path / f"scored/previews/step_{line['step']:06d}-{slug(text)}.png"
            strip = np.asarray(Image.open(path))[:SIZE] / 255
            for view in np.split(strip, NUM_VIEWS, axis=1):
                mean = view.mean((0, 1)) / np.linalg.norm(view.mean((0, 1)))
                by_text = {word: mean @ np.array(c) / np.linalg.norm(c) for word, c in COLORS.items()}
                cosines.append(by_text[text])
                hits.append(max(by_text, key=by_text.__getitem__) == text)
        assert line[NAMES[0]] == pytest.approx(np.mean(cosines), abs=2e-3)
        assert line[NAMES[1]] == pytest.approx(np.mean(hits), abs=1e-6)
    # TensorBoard and the pages have the same numbers; a log without scores has no such curve.
    board = EventAccumulator(str(tmp_path / "scored/tensorboard")).Reload()
    for name in NAMES:
        points = [(point.step, pytest.approx(point.value)) for point in board.Scalars(name)]
        assert points == [(line["step"], line[name]) for line in scores]
        history = read_history(tmp_path / "scored/log.jsonl", names=NAMES)
        assert history.curves[name] == [(line["step"], line[name]) for line in scores]
    assert read_history(tmp_path / "plain/log.jsonl", names=NAMES).curves == {}
    for folder, has in (("plain", False), ("scored", True)):
        page = (tmp_path / folder / "index.html").read_text(encoding="utf-8")
        assert ("CLIP similarity of the previews" in page) == ("Recall@1 among the previews" in page) == has
        assert page.count("<figcaption>Step ") == 3
        assert page.count(MARK) == 3 * has and page.count("CLIP similarity <b>0.") == has


def test_a_line_of_scores_does_not_shorten_the_training_on_the_page(tmp_path):
    page = RunPage(tmp_path, PageFacts(name="run", steps=4), start=0)
    for step in (1, 2):
        page.add(step, {"loss": 1.0, "time/forward": 30.0})
        page.add(step, {NAMES[0]: 0.5})
    page.advance(2)
    page.write("finished")
    assert "1 min" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_resumed_run_has_each_score_once(tmp_path):
    options = {"monitoring": {"preview_every": 2}, "checkpointing": {"every": 2}, "scorer": ColorScorer()}
    make_trainer(tmp_path, steps=4, **options).train(quiet=True)
    trainer = make_trainer(tmp_path, steps=8, **options)
    trainer.train(quiet=True)
    assert [line["step"] for line in scored_lines(tmp_path)] == [2, 4, 6, 8]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    seconds = sum(value for line in lines for name, value in line.items() if name.startswith("time/"))
    assert read_history(tmp_path / "log.jsonl").seconds == pytest.approx(seconds)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count(MARK) == 4


def test_a_failure_to_score_is_reported_once_and_costs_nothing_else(tmp_path, capfd):
    options = {"monitoring": {"preview_every": 2}, "steps": 6}
    assert make_trainer(tmp_path, scorer=BrokenScorer(), **options).train() == 6
    shown = capfd.readouterr().out
    assert shown.count("cannot write the scores of the previews (CUDA out of memory)") == 1
    assert "3 writes to the scores of the previews failed" in shown
    assert len(list((tmp_path / "previews").glob("step_??????.png"))) == 3
    assert scored_lines(tmp_path) == [] and len(log_lines(tmp_path)) == 6


# ---- the CLIP of a run ------------------------------------------------------------------------


def settings(wanted: bool = True, clip: object = CLIP):
    return SimpleNamespace(
        monitoring=SimpleNamespace(preview_scores=wanted), evaluation=EvaluationConfig(clip=str(clip))
    )


def test_the_clip_is_loaded_by_the_main_rank_alone_and_draws_nothing(monkeypatch):
    before = torch.random.get_rng_state()
    assert compose.load_scorer(settings(), World()).encode_texts(["a"]).shape[0] == 1  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())
    monkeypatch.setattr(compose, "load_clip", lambda *args, **more: pytest.fail("loaded"))
    assert compose.load_scorer(settings(False), World()) is None  # type: ignore[arg-type]
    other = SimpleNamespace(is_main=False, run_on_all=lambda action: [action()])
    assert compose.load_scorer(settings(), other) is None  # type: ignore[arg-type]


def damaged(folder, kind):
    """A copy of the embedded CLIP that lacks a file, or has one that is cut off or not finite."""
    folder.mkdir()
    for path in CLIP.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    match kind:
        case "no weights":
            (folder / "open_clip_model.safetensors").unlink()
        case "cut off":
            (folder / "open_clip_model.safetensors").write_bytes(b"\0" * 100)
        case "no JSON":
            (folder / "open_clip_config.json").write_text("{")
        case "remote code":
            (folder / "open_clip_config.json").write_text('{"auto_map": {"AutoModel": "x.py"}}')
    return folder


@pytest.mark.parametrize("kind", ["missing", "no weights", "cut off", "no JSON", "remote code"])
def test_a_clip_that_cannot_be_loaded_is_one_sentence(tmp_path, kind):
    folder = tmp_path / "nothing" if kind == "missing" else damaged(tmp_path / "clip", kind)
    with pytest.raises(ValueError) as caught:
        compose.load_scorer(settings(clip=folder), World())  # type: ignore[arg-type]
    message = str(caught.value)
    assert str(folder) in message and message.endswith(", or set monitoring.preview_scores=false")
    assert "\n" not in message and message.count("evaluation.clip=") == 1
