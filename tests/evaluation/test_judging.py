"""Objects scored by a protocol: their frame, the rows, the folder that resumes, the tables."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from dataclasses import replace

import pytest
import torch

from amortized.evaluation import EvaluatedModel
from amortized.evaluation.judged import add_row, open_folder, write_scores
from amortized.evaluation.judging import (
    JudgedRow,
    cost,
    frame_of,
    gallery_of,
    judge_prompts,
    moved_to,
    show_fields,
)
from amortized.evaluation.protocols import PROTOCOLS, region_maximum
from amortized.types import Prompt

TEXTS = ("a red ball", "a green ball.", "a blue ball")
PROMPTS = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(TEXTS)]
IDENTITY = {"protocol": "t3bench-lite", "judge": "mean", "judge_digest": "1"}


class MeanJudge:
    """Scores an image by the mean of its pixels, and counts the images."""

    name, digest = "mean", "1"

    def __init__(self):
        self.images = 0

    def encode(self, images):
        self.images += len(images)
        return images.double().mean(dim=(1, 2, 3))

    def score(self, encoded, texts):
        return encoded[:, None].expand(-1, len(texts))


class ColorJudge(MeanJudge):
    """Scores a text by the color that it names."""

    def encode(self, images):
        side = images.shape[1] // 2
        return images[:, side, side].double()

    def score(self, encoded, texts):
        channels = {"red": 0, "green": 1, "blue": 2}
        return torch.stack([encoded[:, channels[t.split()[1]]] for t in texts], 1)


def model_of(toys, **ball):
    return EvaluatedModel(
        scene_for=lambda batch: toys.BallScene(
            tuple(toys.Ball(**({"albedo": toys.truth(p).albedo} | ball)) for p in batch)
        ),
        render=toys.render,
    )


def small(name: str, size: int = 9):
    return replace(PROTOCOLS[name], image_size=size)


def rows_of(protocol, judge, toys, prompts=PROMPTS, *, views=50, **ball) -> list[JudgedRow]:
    return list(
        judge_prompts(
            prompts,
            protocol=protocol,
            judge=judge,
            show=show_fields(model_of(toys, **ball), protocol),
            gallery=gallery_of(protocol, prompts),
            views_per_render=views,
        )
    )


# ---- objects --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("center", "radius"), [((0, 0, 0), 0.5), ((0.2, -0.1, 0.3), 0.3)])
def test_the_frame_of_a_ball_is_its_center_and_radius(toys, center, radius) -> None:
    scene = toys.BallScene((toys.Ball(center=center, radius=radius),))
    middle, half = frame_of(scene, "cpu")
    assert torch.allclose(middle, torch.tensor(center, dtype=torch.float32), atol=0.01)
    assert half == pytest.approx(radius, abs=0.01)


def test_moving_the_cameras_is_moving_the_object() -> None:
    cameras = PROTOCOLS["t3bench-lite"].cameras()
    center, half = torch.tensor([0.2, -0.1, 0.3]), 0.4
    moved = moved_to(cameras, center, half)
    point = torch.tensor([0.3, 0.1, 0.2])
    inside = (point - center) / half  # in the object's own frame
    for before, after in zip(cameras.c2w[0], moved.c2w[0], strict=True):
        direct = before[:3, :3].T @ (inside - before[:3, 3])
        through = after[:3, :3].T @ (point - after[:3, 3])
        assert torch.allclose(through, half * direct, atol=1e-5)  # the same ray
    assert torch.equal(cameras.c2w, PROTOCOLS["t3bench-lite"].cameras().c2w)


@pytest.mark.parametrize("views", [1, 7, 1000])
def test_a_row_has_the_scores_of_every_view(toys, views) -> None:
    protocol, judge = small("t3bench-lite"), MeanJudge()
    (row,) = rows_of(protocol, judge, toys, PROMPTS[:1], views=views)
    assert judge.images == 42 == len(row.views) and not row.missing
    expected = region_maximum(torch.tensor(row.views, dtype=torch.float64), 1)
    assert row.scores == {"quality": pytest.approx(expected, abs=1e-12)}
    assert (row.id, row.text, row.split) == ("p0", "a red ball", "train")


def test_an_object_without_a_surface_is_black_and_listed(toys, tmp_path) -> None:
    rows = rows_of(small("t3bench-lite"), MeanJudge(), toys, radius=-0.1)
    assert all(row.missing and row.scores["quality"] == 50 for row in rows)
    text = write_scores(tmp_path, rows, identity=IDENTITY, gallery=None, seed=0)
    assert "3 objects without a surface" in text
    assert list(json.loads((tmp_path / "scores.json").read_text())["missing"]) == ["p0", "p1", "p2"]


def test_recall_is_among_the_evaluated_prompts(toys, tmp_path) -> None:
    protocol = small("scaledreamer-clip")
    rows = rows_of(protocol, ColorJudge(), toys)
    assert [row.scores["recall_at_1"] for row in rows] == [1, 1, 1]
    assert rows[1].text == "a green ball" and len(gallery_of(protocol, PROMPTS)) == 3
    own = [toys.truth(prompt).albedo for prompt in PROMPTS]
    for row, color in zip(rows, own, strict=True):
        assert row.scores["similarity"] == pytest.approx(max(color), abs=1e-6)
    swapped = [Prompt(id="x", text="a red ball"), Prompt(id="y", text="A red  ball"), PROMPTS[2]]
    assert len(gallery_of(protocol, swapped)) == 2  # CLIP cannot distinguish the first two
    text = write_scores(tmp_path, rows, identity=IDENTITY, gallery=3, seed=0)
    assert "(chance 0.3333)" in text


def test_the_cost_is_printed_in_images_and_scores() -> None:
    protocol = PROTOCOLS["t3bench-quality"]
    assert cost(protocol, 300, None) == (
        "300 prompts x 810 views = 243,000 images of 512 px to render and encode, 243,000 scores to compute"
    )
    protocol = PROTOCOLS["scaledreamer-clip"]
    assert cost(protocol, 2, gallery_of(protocol, PROMPTS)).endswith("720 scores to compute")


# ---- rows on disk ---------------------------------------------------------------------------------


def made(number: int, **scores: float) -> JudgedRow:
    views = (0.1 + number, math.nan, 1e-17)
    return JudgedRow(id=f"p{number}", text="=1+1", split="train", scores=scores, views=views)


def same(a: JudgedRow, b: JudgedRow) -> bool:
    return repr(dataclasses.astuple(a)) == repr(dataclasses.astuple(b))


def test_rows_return_exactly_and_a_line_that_a_kill_cut_is_dropped(tmp_path) -> None:
    folder = tmp_path / "scores"
    assert open_folder(folder, IDENTITY) == ({}, "")
    rows = [made(0, quality=51.25), made(1, quality=math.nan), made(2, quality=1 / 3)]
    for number, row in enumerate(rows):
        add_row(folder, number % 2, row)
    found, note = open_folder(folder, IDENTITY)
    assert not note and all(same(found[row.id], row) for row in rows) and len(found) == 3
    file = folder / "rows" / "000.jsonl"
    whole = file.read_bytes()
    for length in range(len(whole) - 60, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert sorted(open_folder(folder, IDENTITY)[0]) == ["p0", "p1"]
    add_row(folder, 0, rows[2])  # after half a line
    assert same(open_folder(folder, IDENTITY)[0]["p2"], rows[2])


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"id": 1}', "null", "x", '{"id": "a", "scores": 3}', "[" * 9999]
)
def test_lines_that_are_no_rows_are_skipped(tmp_path, line) -> None:
    open_folder(tmp_path / "scores", IDENTITY)
    (tmp_path / "scores" / "rows" / "000.jsonl").write_text(line)
    assert open_folder(tmp_path / "scores", IDENTITY)[0] == {}


def test_rows_of_another_judge_are_replaced_with_a_note(tmp_path) -> None:
    folder = tmp_path / "scores"
    open_folder(folder, IDENTITY)
    add_row(folder, 3, made(0, quality=1.0))
    rows, note = open_folder(folder, IDENTITY | {"judge_digest": "2"})
    assert rows == {} and "another judge_digest, which are replaced" in note
    assert open_folder(folder, IDENTITY | {"judge_digest": "2"}) == ({}, "")


def test_a_folder_of_other_files_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="has files that are not scores of a protocol"):
        open_folder(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="cannot write"):
        open_folder(tmp_path / "thesis.tex" / "scores", IDENTITY)


def test_tables_have_each_prompt_and_no_formula(tmp_path) -> None:
    rows = [made(0, quality=40.0), made(1, quality=60.0), replace(made(2, quality=math.nan), split="test")]
    text = write_scores(tmp_path, rows[:2], identity=IDENTITY, gallery=None, seed=0)
    assert "quality            50.0000   [40.0000, 60.0000]" in text and "chance" not in text
    text = write_scores(tmp_path, rows, identity=IDENTITY, gallery=None, seed=0)
    assert "1 prompt with a score that is not finite" in text
    data = json.loads((tmp_path / "scores.json").read_text())
    assert data["undefined"] == ["p2"] and data["metrics"]["quality"]["mean"] is None
    assert data["judge_digest"] == "1" and data["prompts"][1]["scores"] == {"quality": 60.0}
    with (tmp_path / "scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["quality"] for line in table] == ["40.0", "60.0", "nan"]
    assert {line["text"] for line in table} == {"'=1+1"}
