"""Summaries and files of evaluation results."""

import csv
import json
import math
import random

import pytest

from amortized.evaluation import (
    PromptRow,
    merge_rows,
    summarize,
    write_results,
)


def test_nan_becomes_null_and_is_not_averaged_away(tmp_path):
    rows = [
        PromptRow(
            id=key, text=text, split="train", clip_similarity=similarity, recall_at_1=1.0, color_error=error
        )
        for key, text, similarity, error in (("a", "a", 0.5, math.nan), ("b", 'b,\n"c"', 0.7, 0.1))
    ]
    write_results(tmp_path, summarize(rows, name="n", gallery=10, settings={"x": math.inf}, seed=0))
    text = (tmp_path / "results.json").read_text()
    data = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert data["metrics"]["color_error"] == {"mean": None, "low": None, "high": None, "n": 2}
    assert data["metrics"]["clip_similarity"]["mean"] == pytest.approx(0.6)
    assert data["prompts"][0]["color_error"] is None and data["settings"]["x"] is None
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0]["color_error"] == "" and table[1]["text"] == 'b,\n"c"'
    assert "NaN" not in (tmp_path / "index.html").read_text()


def test_the_seed_changes_the_intervals_and_the_number_of_processes_does_not():
    generator = random.Random(0)
    rows = [
        PromptRow(
            id=str(i), text=f"t{i}", split="train", clip_similarity=generator.random(), recall_at_1=i % 3 / 2
        )
        for i in range(50)
    ]
    first, again, other = (
        summarize(rows, name="n", gallery=50, settings={}, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    for name in ("clip_similarity", "recall_at_1"):
        for by_seed in ((first.metrics, other.metrics), (first.by_split["train"], other.by_split["train"])):
            one, two = (metrics[name] for metrics in by_seed)
            assert one.mean == two.mean and (one.low, one.high) != (two.low, two.high)
    for num_processes in (1, 2, 3, 7):
        shards = [rows[rank::num_processes] for rank in range(num_processes)]
        merged = merge_rows(shards, [row.id for row in rows])
        assert summarize(merged, name="n", gallery=50, settings={}, seed=1) == other


def test_no_cell_of_the_table_is_a_formula(tmp_path):
    texts = ["=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "a = b", "\t=1"]
    rows = [
        PromptRow(
            id=f"p{i}", text=text, split="heldout", clip_similarity=-0.25, recall_at_1=0.0, near_train=text
        )
        for i, text in enumerate(texts)
    ]
    write_results(tmp_path, summarize(rows, name="n", gallery=9, settings={}, seed=0))
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for line, text in zip(table, texts, strict=True):
        expected = text if text == "a = b" else f"'{text}"
        assert line["text"] == line["near_train"] == expected
        assert line["clip_similarity"] == "-0.25"  # a number stays a number
    data = json.loads((tmp_path / "results.json").read_text())
    assert [row["text"] for row in data["prompts"]] == texts


def test_an_empty_selection_raises():
    with pytest.raises(ValueError, match="no prompt"):
        summarize([], name="n", gallery=1, settings={}, seed=0)
