"""Which folders can be compared, and one sentence for all others."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.comparison import MAX_RUNS, read_evaluations
from amortized.comparison.evaluations import _labels
from amortized.evaluation.stored import read_results
from tests.comparison.made import evaluation, row, run
from tests.pages.html import HOSTILE

ROWS = [row("a cube", iou=0.5)]


def test_results_are_read_as_they_were_written(tmp_path):
    rows = [row(text, iou=0.25 * n, janus=None) for n, text in enumerate(["a", "b", "é\n<b>"])]
    rows.append(row("undefined", iou=float("nan")))
    stored = read_results(evaluation(tmp_path / "e", rows, name="n", settings={"views": 4}))
    assert stored.rows[:3] == tuple(rows[:3]) and stored.rows[3].iou is None
    assert (stored.name, stored.settings, stored.gallery) == ("n", {"views": 4}, 9)


def test_a_run_and_its_evaluations_are_named_apart(tmp_path):
    first = run(tmp_path / "one", ROWS, steps=9, provenance={"checkpoint": "step_000009", "step": 9})
    second = run(tmp_path / "two", ROWS)
    early = first / "evaluations/early"
    evaluation(early, ROWS, name="one", provenance={"checkpoint": "step_000004", "step": 4})
    runs = read_evaluations([first, early, second])
    assert [one.label for one in runs] == ["one (step_000009)", "one (step_000004)", "two"]
    # The curves of a checkpoint end with it, and the log is that of the run.
    lengths = [len(one.history.curves["loss"]) for one in runs]
    assert lengths == [9, 4, 9]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "a (1)"]), st.sampled_from(["", "x", "1"])), max_size=9))
def test_labels_are_distinct(names):
    labels = _labels(names, [Path(f"r{number % 2}") for number in range(len(names))])
    assert len(set(labels)) == len(names)


def refused(paths) -> str:
    with pytest.raises(ValueError) as caught:
        read_evaluations(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_folders_are_refused_with_a_remedy(tmp_path):
    one = run(tmp_path / "one", ROWS)
    bare = tmp_path / "bare"
    (bare / "checkpoints").mkdir(parents=True)
    assert "holds neither a run nor an evaluation" in refused([one, bare])
    (bare / "config.yaml").write_text("output: x\n")
    assert f"has not been evaluated: evaluate it first (amortized evaluate {bare})" in refused([one, bare])
    evaluation(bare / "evaluations/part", ROWS)
    assert "has no evaluation of its whole corpus" in refused([one, bare])
    assert str(bare / "evaluations/part") in refused([one, bare])
    assert "is not a folder" in refused([one, tmp_path / "nothing"])
    assert "is named twice" in refused([one, one / "evaluation"])
    assert "takes 2 to" in refused([one]) and "takes 2 to" in refused([one] * (MAX_RUNS + 1))


def test_nothing_outside_a_run_is_read_through_links(tmp_path):
    one, secret = run(tmp_path / "one", ROWS), run(tmp_path / "secret", ROWS)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "evaluation").symlink_to(secret / "evaluation")
    assert "leads out of" in refused([one, linked])
    (linked / "evaluation").unlink()
    (linked / "evaluation").mkdir()
    (linked / "evaluation/results.json").symlink_to(secret / "evaluation/results.json")
    assert "leads out of" in refused([one, linked])
    (linked / "evaluation/results.json").unlink()
    evaluation(linked / "evaluation", ROWS, name="linked")
    (linked / "config.yaml").write_text("output: x\n")
    (linked / "log.jsonl").symlink_to(secret / "log.jsonl")
    history = read_evaluations([one, linked])[1].history
    assert not history.curves and "leads out of" in history.note


DAMAGED = [
    ("name", None),
    ("name", 7),
    ("prompts", None),
    ("prompts", []),
    ("prompts", {}),
    ("prompts", [3]),
    ("prompts", [{}]),
    ("prompts", [{"id": "a", "text": 3, "split": "train"}]),
    ("prompts", [{"id": "a", "text": "x" * 200_000, "split": "train"}]),
    ("prompts", [{"id": "a", "text": "t", "split": "train", "iou": "0.5"}]),
    ("prompts", [{"id": "a", "text": "t", "split": "train", "iou": 10**400}]),
    ("prompts", [{"id": "a", "text": "t", "split": "train", "iou": True}]),
    ("prompts", [{"id": "a", "text": "t", "split": "train", "strip": ["x"]}]),
]


@pytest.mark.parametrize(("key", "value"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_results_are_one_sentence(tmp_path, key, value):
    one, two = run(tmp_path / "one", ROWS), run(tmp_path / "two", ROWS)
    path = two / "evaluation/results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert "results.json is not the result of an evaluation (" in refused([one, two])


def test_random_damage_is_a_sentence_or_a_result(tmp_path):
    path = evaluation(tmp_path / "e", [row(text) for text in HOSTILE[:5]]) / "results.json"
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            assert dataclasses.is_dataclass(read_results(tmp_path / "e"))
        except ValueError as error:
            assert "\n" not in str(error)
