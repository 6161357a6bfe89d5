import csv
import dataclasses
import json
import math
import random

import imageio.v3 as iio
import pytest
import torch

from amortized.evaluation import EvaluationConfig, PromptRow, evaluate, merge_rows, summarize, write_results
from amortized.evaluation.evaluator import safe_name
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


def run(toys, folder, prompts=PROMPTS, *, settings=SMALL, wrong=(), **changes):
    """Evaluate a generator that is right about every prompt but those in `wrong`, which come out green."""

    def scene_for(batch):
        assert len(batch) <= settings.prompts_per_batch
        balls = [toys.truth(p) or toys.Ball(albedo=(1.0, 1.0, 1.0)) for p in batch]
        green = toys.COLORS["green"]
        return toys.BallScene(
            tuple(
                dataclasses.replace(ball, albedo=green, marked=(0, 2)) if p.id in wrong else ball
                for p, ball in zip(batch, balls, strict=True)
            )
        )

    arguments = {
        "scene_for": scene_for,
        "render": toys.render,
        "prompts": prompts,
        "gallery_texts": GALLERY,
        "scorer": toys.MeanColorScorer(),
        "corpus_truth": toys.truth,
        "settings": settings,
        "folder": folder,
        "name": "toy",
        "start_scene_for": lambda batch: toys.BallScene(tuple(toys.Ball(radius=0.3) for _ in batch)),
    }
    return evaluate(**(arguments | changes))


@pytest.fixture(scope="module")
def results(toys, tmp_path_factory):
    return run(toys, tmp_path_factory.mktemp("eval"))


def test_rows_of_an_exact_generator(results):
    rows = {row.id: row for row in results.prompts}
    assert [row.id for row in results.prompts] == list(TEXTS)
    assert results.gallery == 4 + 3  # "a red ball" and "a green ball" are in the gallery already
    for key in "rgb":
        row = rows[key]
        assert row.clip_similarity == pytest.approx(1.0, abs=1e-5)
        assert row.iou == 1.0 and row.color_error < 1e-4
        radius = 0.6 if key == "b" else 0.4
        smaller, larger = sorted((0.3, radius))
        assert row.iou_start == pytest.approx((smaller / larger) ** 3, abs=0.08)  # 24 cells a side
        assert row.front_shown is None and row.janus is None
    # The scorer reads colors alone, so a sentence is found only where no other names its color.
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


def test_a_wrong_color_and_a_second_front_are_seen(toys, tmp_path):
    rows = {row.id: row for row in run(toys, tmp_path, wrong=("d", "b")).prompts}
    red, blue, green = (torch.tensor(toys.COLORS[c]) for c in ("red", "blue", "green"))
    cosine = torch.nn.functional.cosine_similarity
    assert rows["d"].janus == 1.0 and rows["d"].mark_sides == (True, False, True, False)
    # Two of four views see a mark or only plain green; the plain ones give the exact cosine.
    assert rows["b"].iou == 1.0
    # The white dots (radius .15) cover a share of the ball, the rest is green instead of blue.
    spot = 2 * 0.15**2 / (4 * 0.6**2)  # two caps: chord^2 / (4 r^2) of the sphere each
    expected = (1 - spot) * (green - blue).abs().mean() + spot * (1 - blue).abs().mean()
    assert rows["b"].color_error == pytest.approx(float(expected), abs=0.01)
    assert rows["b"].clip_similarity < float(cosine(green, blue, dim=0)) + 0.3
    assert rows["b"].recall_at_1 == 0.0
    assert cosine(red, green, dim=0) < 0.5


def test_recall_of_the_truth_is_what_an_exact_generator_reaches(toys, results, tmp_path):
    """It tells the judge's failures from the generator's, and a wrong generator does not change it."""
    exact = [row.recall_of_truth for row in results.prompts]
    assert exact[:-1] == [row.recall_at_1 for row in results.prompts][:-1] and exact[-1] is None
    wrong = run(toys, tmp_path, wrong=("g", "b")).prompts
    assert [row.recall_of_truth for row in wrong] == exact


def test_recall_is_the_share_of_views(toys, tmp_path):
    """A ball whose front alone is white: one of four views finds "something white"."""

    class Capped(toys.Ball):
        def colour(self, points):
            white = points[..., :1] > 0.6 * self.radius
            return torch.where(white, 1.0, torch.tensor(toys.COLORS["green"]))

    settings = dataclasses.replace(SMALL, elevation_deg=0.0)
    prompts = [Prompt(id="w", text="something white"), Prompt(id="g", text="a green ball")]
    made = run(
        toys,
        tmp_path,
        prompts,
        settings=settings,
        scene_for=lambda batch: toys.BallScene(tuple(Capped() for _ in batch)),
    )
    assert [row.recall_at_1 for row in made.prompts] == [0.25, 0.75]


def test_batches_give_the_rows_of_one_by_one_in_any_order(toys, tmp_path, results):
    for size in (1, 3, 5):
        settings = dataclasses.replace(SMALL, prompts_per_batch=size, views_per_render=3)
        assert run(toys, tmp_path, settings=settings).prompts == results.prompts
    shuffled = random.Random(0).sample(PROMPTS, 5)
    rows = {row.id: row for row in run(toys, tmp_path, shuffled).prompts}
    assert [rows[key] for key in TEXTS] == list(results.prompts)


def test_repeated_prompts_give_exact_rows(toys, tmp_path, results):
    rows = {row.id: row for row in results.prompts}
    again = [PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[2]]
    made = run(toys, tmp_path, again, gallery_texts=[*GALLERY, *TEXTS.values()])
    assert list(made.prompts) == [rows[p.id] for p in again]
    # The same text under two ids is in the gallery once: it does not tie with itself.
    twins = [Prompt(id="g1", text="a green ball"), Prompt(id="g2", text="A green  ball")]
    made = run(toys, tmp_path, twins)
    assert [row.recall_at_1 for row in made.prompts] == [1.0, 1.0] and made.gallery == 4


def test_one_id_for_two_texts_is_refused(toys, tmp_path):
    with pytest.raises(ValueError, match="'r' stands for"):
        run(toys, tmp_path, [PROMPTS[0], Prompt(id="r", text="another")])


def test_media_have_the_views_and_frames_asked_for(toys, tmp_path):
    made = run(toys, tmp_path, [PROMPTS[3], Prompt(id="../e vil", text="a red ball")])
    for row in made.prompts:
        strip, turntable = tmp_path / row.strip, tmp_path / row.turntable
        assert strip.resolve().is_relative_to(tmp_path) and strip.parent == tmp_path / "strips"
        assert iio.imread(strip).shape == (16, 4 * 16, 3)
        assert iio.imread(turntable, plugin="pyav").shape == (5, 18, 18, 3)
    strip = iio.imread(tmp_path / made.prompts[0].strip)
    assert strip[0, 0].tolist() == [128] * 3  # the background
    assert (strip[4:12, 4:12] > 240).all(-1).any(), "the first view is the front and shows the dot"
    assert not (strip[4:12, 2 * 16 + 4 : 2 * 16 + 12] > 240).all(-1).any(), "the third view is the back"


def test_no_turntables_where_none_are_asked_for(toys, tmp_path):
    made = run(toys, tmp_path, settings=dataclasses.replace(SMALL, turntable_frames=0))
    assert {row.turntable for row in made.prompts} == {None} and not (tmp_path / "turntables").exists()


def test_progress_and_no_graph(toys, tmp_path):
    calls = []

    def render(scene, cameras, height, width):
        assert not torch.is_grad_enabled()
        return toys.render(scene, cameras, height, width)

    run(toys, tmp_path, render=render, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_a_corpus_without_truth_has_only_clip_scores(toys, tmp_path):
    made = run(toys, tmp_path, corpus_truth=lambda prompt: None)
    assert set(made.metrics) == {"clip_similarity", "recall_at_1"}
    assert made.by_kind == {}


def test_shards_merge_into_the_rows_of_one_process(toys, tmp_path, results):
    everything = [*GALLERY, *TEXTS.values()]
    shards = [
        run(toys, tmp_path, shard, gallery_texts=everything).prompts
        for shard in (PROMPTS[0::2], [*PROMPTS[1::2], PROMPTS[1]])  # padded to equal length
    ]
    rows = merge_rows(shards, [p.id for p in PROMPTS])
    assert summarize(rows, name="toy", gallery=7, settings=results.settings) == results
    assert [r.id for r in merge_rows(shards, ["x", "r", "x"])] == ["x", "r", "x"]
    with pytest.raises(ValueError, match="1 prompts were not evaluated, the first is 'q'"):
        merge_rows(shards, ["r", "q"])


def test_files_of_the_results(toys, tmp_path, results):
    write_results(tmp_path, results)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["chance"] == {"recall_at_1": 1 / 7, "gallery": 7}
    assert set(data["metrics"]["iou"]) == {"mean", "low", "high", "n"}
    assert data["prompts"][0]["text"] == "a red ball" and data["prompts"][0]["strip"] == "strips/r.png"
    assert data["prompts"][4]["iou"] is None and data["settings"]["views"] == 4
    assert data["by_kind"]["big"]["iou"]["mean"] == 1.0
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["text"] for line in table] == list(TEXTS.values())
    assert float(table[0]["iou_start"]) == results.prompts[0].iou_start
    assert table[4]["iou"] == "" and table[3]["mark_sides"] == "front"


def test_nan_is_written_as_null_and_not_averaged_away(tmp_path):
    rows = [
        PromptRow(
            id=key, text=text, split="train", clip_similarity=similarity, recall_at_1=1.0, color_error=error
        )
        for key, text, similarity, error in (("a", "a", 0.5, math.nan), ("b", 'b,\n"c"', 0.7, 0.1))
    ]
    write_results(tmp_path, summarize(rows, name="n", gallery=10, settings={"x": math.inf}))
    text = (tmp_path / "results.json").read_text()
    data = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert data["metrics"]["color_error"] == {"mean": None, "low": None, "high": None, "n": 2}
    assert data["metrics"]["clip_similarity"]["mean"] == pytest.approx(0.6)
    assert data["prompts"][0]["color_error"] is None and data["settings"]["x"] is None
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0]["color_error"] == "" and table[1]["text"] == 'b,\n"c"'
    assert "NaN" not in (tmp_path / "index.html").read_text()


def test_an_empty_selection_is_refused():
    with pytest.raises(ValueError, match="no prompt"):
        summarize([], name="n", gallery=1, settings={})


def test_file_names_are_harmless_and_distinct():
    ids = ["red-cube", "a/b", "a b", "../x", "", "ü", "ö", ".hidden", "x" * 300, "a.b", "con", "-rf"]
    names = [safe_name(key) for key in ids]
    assert names[0] == "red-cube" and len(set(names)) == len(ids)
    for name in names:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        assert 0 < len(name) <= 100 and name[0] != "-"


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
def test_settings_out_of_range_name_key_and_value(change):
    ((key, value),) = change.items()
    with pytest.raises(ValueError, match=rf"evaluation\.{key} must .*{value}"):
        EvaluationConfig(**change)
