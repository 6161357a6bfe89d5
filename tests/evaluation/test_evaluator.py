import csv
import dataclasses
import json
import random

import av
import numpy as np
import pytest
import torch
from PIL import Image

from amortized.evaluation import (
    EvaluatedModel,
    EvaluationConfig,
    Gallery,
    PromptRow,
    Results,
    evaluate,
    merge_rows,
    summarize,
    write_results,
)
from amortized.evaluation.evaluator import file_names
from amortized.names import slug
from amortized.types import Prompt

TEXTS = {
    "r": "a red ball",
    "g": "a green ball",
    "b": "a big blue ball",
    "d": "a red ball with a dot",
    "x": "a ball",
}
PROMPTS = [
    Prompt(id=key, text=text, split="heldout" if key in "bx" else "train") for key, text in TEXTS.items()
]
GALLERY = ["a red ball", "a green ball", "a blue ball", "something white"]
SMALL = EvaluationConfig(
    views=4,
    image_size=16,
    turntable_frames=5,
    turntable_size=18,
    grid=24,
    prompts_per_batch=2,
    clip="none",
)


def score(
    toys,
    folder,
    prompts=PROMPTS,
    *,
    config=SMALL,
    wrong=(),
    texts=GALLERY,
    scene_for=None,
    render=None,
    truth_for=None,
    progress=None,
) -> list[PromptRow]:
    """Rows of a generator that is right about every prompt except those in `wrong`, which turn out green."""

    def default_scene_for(batch):
        assert len(batch) <= config.prompts_per_batch
        balls = [toys.truth(p) or toys.Ball(albedo=(1.0, 1.0, 1.0)) for p in batch]
        green = toys.COLORS["green"]
        return toys.BallScene(
            tuple(
                dataclasses.replace(ball, albedo=green, marked=(0, 2)) if p.id in wrong else ball
                for p, ball in zip(batch, balls, strict=True)
            )
        )

    model = EvaluatedModel(
        scene_for=scene_for or default_scene_for,
        start_scene_for=lambda batch: toys.BallScene(tuple(toys.Ball(radius=0.3) for _ in batch)),
        render=render or toys.render,
    )
    return evaluate(
        model,
        prompts,
        gallery=gallery_of(prompts, texts),
        truth_for=truth_for or toys.truth,
        scorer=toys.MeanColorScorer(),
        config=config,
        folder=folder,
        progress=progress,
    )


def gallery_of(prompts=PROMPTS, texts=GALLERY) -> Gallery:
    return Gallery([*texts, *(prompt.text for prompt in prompts)])


def summarized(rows, *, seed: int = 0) -> Results:
    settings = dataclasses.asdict(SMALL)
    return summarize(rows, name="toy", gallery=len(gallery_of()), settings=settings, seed=seed)


@pytest.fixture(scope="module")
def results(toys, tmp_path_factory) -> Results:
    return summarized(score(toys, tmp_path_factory.mktemp("eval")))


def test_rows_of_an_exact_generator(results):
    rows = {row.id: row for row in results.prompts}
    assert [row.id for row in results.prompts] == list(TEXTS)
    assert results.gallery == 4 + 3  # GALLERY already holds "a red ball" and "a green ball"
    for key in "rgb":
        row = rows[key]
        assert row.clip_similarity == pytest.approx(1.0, abs=1e-5)
        assert row.iou == 1.0 and row.color_error < 1e-4
        radius = 0.6 if key == "b" else 0.4
        smaller, larger = sorted((0.3, radius))
        assert row.iou_start == pytest.approx((smaller / larger) ** 3, abs=0.08)  # 24 cells per side
        assert row.front_shown is None and row.janus is None
    # The scorer knows colors only, so a text wins only if no other text names its color.
    assert [rows[k].recall_at_1 for k in "rgbd"] == [0.0, 1.0, 0.0, 0.0]
    assert rows["d"].front_shown == 1.0 and rows["d"].janus == 0.0
    assert rows["d"].mark_sides == (True, False, False, False)
    assert (rows["b"].kind, rows["r"].kind, rows["x"].kind) == ("big", "small", None)
    assert rows["x"].iou is None and rows["x"].color_error is None


def test_metrics_are_means_over_the_prompts_they_apply_to(results):
    rows = results.prompts
    assert results.metrics["clip_similarity"].mean == pytest.approx(
        sum(row.clip_similarity for row in rows) / 5
    )
    assert results.metrics["recall_at_1"].n == 5 and results.metrics["iou"].n == 4
    assert results.metrics["front_shown"].n == 1
    assert set(results.by_split) == {"train", "heldout"}
    assert results.by_split["heldout"]["iou"].n == 1 and results.by_split["train"]["iou"].n == 3
    assert set(results.by_kind) == {"big", "small"}


def test_a_wrong_color_and_a_second_front_change_the_scores(toys, tmp_path):
    rows = {row.id: row for row in score(toys, tmp_path, wrong=("d", "b"))}
    red, blue, green = (torch.tensor(toys.COLORS[c]) for c in ("red", "blue", "green"))
    cosine = torch.nn.functional.cosine_similarity
    assert rows["d"].janus == 1.0 and rows["d"].mark_sides == (True, False, True, False)
    # Two of the four views show a mark; the other two are plain green.
    assert rows["b"].iou == 1.0
    # The white dots (radius 0.15) cover a part of the ball; the rest is green instead of blue.
    spot = 2 * 0.15**2 / (4 * 0.6**2)  # two caps: chord^2 / (4 r^2) of the sphere each
    expected = (1 - spot) * (green - blue).abs().mean() + spot * (1 - blue).abs().mean()
    assert rows["b"].color_error == pytest.approx(float(expected), abs=0.01)
    assert rows["b"].clip_similarity < float(cosine(green, blue, dim=0)) + 0.3
    assert rows["b"].recall_at_1 == 0.0
    assert cosine(red, green, dim=0) < 0.5


def test_recall_of_truth_is_the_recall_of_an_exact_generator(toys, results, tmp_path):
    """It separates failures of CLIP from failures of the generator: a wrong generator does not change it."""
    exact = [row.recall_of_truth for row in results.prompts]
    assert exact[:-1] == [row.recall_at_1 for row in results.prompts][:-1] and exact[-1] is None
    wrong = score(toys, tmp_path, wrong=("g", "b"))
    assert [row.recall_of_truth for row in wrong] == exact


def test_recall_is_the_fraction_of_views(toys, tmp_path):
    """Only the front of the ball is white, so one of four views matches "something white"."""

    class Capped(toys.Ball):
        def color(self, points):
            white = points[..., :1] > 0.6 * self.radius
            return torch.where(white, 1.0, torch.tensor(toys.COLORS["green"]))

    config = dataclasses.replace(SMALL, elevation_deg=0.0)
    prompts = [Prompt(id="w", text="something white"), Prompt(id="g", text="a green ball")]
    rows = score(
        toys,
        tmp_path,
        prompts,
        config=config,
        scene_for=lambda batch: toys.BallScene(tuple(Capped() for _ in batch)),
    )
    assert [row.recall_at_1 for row in rows] == [0.25, 0.75]


def test_rows_do_not_depend_on_batch_size_or_order(toys, tmp_path, results):
    for size in (1, 3, 5):
        config = dataclasses.replace(SMALL, prompts_per_batch=size, views_per_render=3)
        assert score(toys, tmp_path, config=config) == list(results.prompts)
    shuffled = random.Random(0).sample(PROMPTS, 5)
    rows = {row.id: row for row in score(toys, tmp_path, shuffled)}
    assert [rows[key] for key in TEXTS] == list(results.prompts)


def test_repeated_prompts_give_equal_rows(toys, tmp_path, results):
    rows = {row.id: row for row in results.prompts}
    again = [PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[2]]
    assert score(toys, tmp_path, again, texts=[*GALLERY, *TEXTS.values()]) == [rows[p.id] for p in again]
    # Two spellings of a text share one column of the gallery, so it does not tie with itself.
    twins = [Prompt(id="g1", text="a green ball"), Prompt(id="g2", text="A green  ball")]
    assert [row.recall_at_1 for row in score(toys, tmp_path, twins)] == [1.0, 1.0]
    assert len(gallery_of(twins)) == 4


def test_one_id_for_two_texts_raises(toys, tmp_path):
    with pytest.raises(ValueError, match="'r' names both"):
        score(toys, tmp_path, [PROMPTS[0], Prompt(id="r", text="another")])


def test_a_gallery_holds_each_text_once_and_every_prompt():
    gallery = Gallery(["a red ball", "A  red BALL", "a cone"])
    assert gallery.texts == ["a red ball", "a cone"] and len(gallery) == 2
    assert [gallery.column(text) for text in ("A red ball", "a cone ")] == [0, 1]
    with pytest.raises(ValueError, match="the gallery lacks 'a cube'"):
        gallery.column("a cube")


def test_media_have_the_configured_views_and_frames(toys, tmp_path):
    rows = score(toys, tmp_path, [PROMPTS[3], Prompt(id="../e vil", text="a red ball")])
    for row in rows:
        strip, turntable = tmp_path / row.strip, tmp_path / row.turntable
        assert strip.resolve().is_relative_to(tmp_path) and strip.parent == tmp_path / "strips"
        assert np.asarray(Image.open(strip)).shape == (16, 4 * 16, 3)
        with av.open(str(turntable)) as container:
            assert [(f.height, f.width) for f in container.decode(video=0)] == [(18, 18)] * 5
    strip = np.asarray(Image.open(tmp_path / rows[0].strip))
    assert strip[0, 0].tolist() == [128] * 3  # the background
    assert (strip[4:12, 4:12] > 240).all(-1).any(), "the first view is the front and shows the dot"
    assert not (strip[4:12, 2 * 16 + 4 : 2 * 16 + 12] > 240).all(-1).any(), "the third view is the back"


def test_zero_turntable_frames_write_no_turntables(toys, tmp_path):
    rows = score(toys, tmp_path, config=dataclasses.replace(SMALL, turntable_frames=0))
    assert {row.turntable for row in rows} == {None} and not (tmp_path / "turntables").exists()


def test_progress_is_reported_and_no_graph_is_built(toys, tmp_path):
    calls = []

    def render(scene, cameras, height, width):
        assert not torch.is_grad_enabled()
        return toys.render(scene, cameras, height, width)

    score(toys, tmp_path, render=render, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_a_corpus_without_truth_has_only_clip_scores(toys, tmp_path):
    results = summarized(score(toys, tmp_path, truth_for=lambda prompt: None))
    assert set(results.metrics) == {"clip_similarity", "recall_at_1"}
    assert results.by_kind == {}


def test_shards_merge_into_the_rows_of_one_process(toys, tmp_path, results):
    everything = [*GALLERY, *TEXTS.values()]
    shards = [
        score(toys, tmp_path, shard, texts=everything)
        for shard in (PROMPTS[0::2], [*PROMPTS[1::2], PROMPTS[1]])  # padded to equal length
    ]
    rows = merge_rows(shards, [p.id for p in PROMPTS])
    assert summarized(rows) == results
    assert [r.id for r in merge_rows(shards, ["x", "r", "x"])] == ["x", "r", "x"]
    with pytest.raises(ValueError, match="not evaluated: 1 prompt, the first is 'q'"):
        merge_rows(shards, ["r", "q"])


def test_result_files(toys, tmp_path, results):
    write_results(tmp_path, results)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["chance"] == {"recall_at_1": 1 / 7, "gallery": 7}
    assert set(data["metrics"]["iou"]) == {"mean", "low", "high", "n"}
    assert (
        data["prompts"][0]["text"] == "a red ball"
        and data["prompts"][0]["strip"] == f"strips/{slug('a red ball')}.png"
    )
    assert data["prompts"][4]["iou"] is None and data["settings"]["views"] == 4
    assert data["by_kind"]["big"]["iou"]["mean"] == 1.0
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["text"] for line in table] == list(TEXTS.values())
    assert float(table[0]["iou_start"]) == results.prompts[0].iou_start
    assert table[4]["iou"] == "" and table[3]["mark_sides"] == "front"


def test_file_names_are_readable_safe_and_distinct(monkeypatch):
    texts = ["a red cube", "A red cube!", "a/b", "../x", "ü", "ö", ".hidden", "x" * 5000, "con", "-rf", "\0"]
    prompts = [Prompt(id=str(i), text=text) for i, text in enumerate(texts)]
    names = list(file_names(prompts).values())
    assert names[0].startswith("a-red-cube-") and len(set(names)) == len(texts)
    assert file_names(reversed(prompts)) == file_names(prompts)
    for name in names:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert 0 < len(name) <= 40 and name[0] != "-"
    # One text under two ids, and texts whose digits collide, have a file each.
    assert len(set(file_names([Prompt(id="a", text="t"), Prompt(id="b", text="t")]).values())) == 2
    monkeypatch.setattr(
        "amortized.evaluation.evaluator.slug", lambda text: "same" if " " not in text else slug(text)
    )
    assert len(set(file_names([Prompt(id=key, text=key) for key in "abc"]).values())) == 3


def test_the_true_object_is_shown_from_the_scored_views(toys, tmp_path):
    """For an exact generator both strips are the same picture; without a truth there is none."""
    rows = score(toys, tmp_path, wrong=("g",))
    for row in rows:
        if row.id == "x":
            assert row.truth_strip is None
            continue
        strips = [np.asarray(Image.open(tmp_path / path)) for path in (row.strip, row.truth_strip)]
        assert (strips[0] == strips[1]).all() == (row.id != "g")
    hidden = score(toys, tmp_path / "hidden", config=dataclasses.replace(SMALL, show_truth=False))
    assert {row.truth_strip for row in hidden} == {None} and not (tmp_path / "hidden/truth").exists()
    assert [row.recall_of_truth for row in hidden] == [row.recall_of_truth for row in rows]


@pytest.mark.parametrize(
    "change",
    [
        {"views": 0},
        {"image_size": 0},
        {"turntable_frames": -1},
        {"grid": 0},
        {"distance": 0.0},
        {"fovy_deg": 180.0},
        {"elevation_deg": 91.0},
        {"background": 1.5},
        {"prompts_per_batch": 0},
        {"turntable_fps": 0.0},
        {"views_per_render": 0},
    ],
)
def test_values_out_of_range_raise_with_field_and_value(change):
    ((key, value),) = change.items()
    with pytest.raises(ValueError, match=rf"^{key} must .*{value}"):
        EvaluationConfig(**change)
