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
    summary,
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
    starts = ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\t@", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
    texts = [*(f"{start}cmd|' /C calc'!A0" for start in starts), "-2", "a = b", "a cube", "\u2014 a dash"]
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
        expected = text if text[0] in "a\u2014" else f"'{text}"
        assert line["text"] == line["near_train"] == expected
        assert line["clip_similarity"] == "-0.25"  # a number stays a number
    data = json.loads((tmp_path / "results.json").read_text())
    assert [row["text"] for row in data["prompts"]] == texts


def test_one_prompt_has_no_interval(tmp_path):
    """Neither on the page, nor in the files, nor in the text to print: one value has no spread."""
    row = PromptRow(id="a", text="a cube", split="train", clip_similarity=0.5, recall_at_1=1.0, kind="cube")
    results = summarize([row], name="n", gallery=10, settings={}, seed=0)
    write_results(tmp_path, results)
    data = json.loads((tmp_path / "results.json").read_text())
    for metrics in (data["metrics"], data["by_split"]["train"], data["by_kind"]["cube"]):
        assert metrics["clip_similarity"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
    page = (tmp_path / "index.html").read_text()
    assert "0.500 – 0.500" not in page and 'class="band" style="left:50.00%' not in page
    assert "[" not in summary(results) and "1 prompt," in summary(results)


def test_the_index_names_the_files_and_scores_of_each_prompt(tmp_path):
    rows = [
        PromptRow(
            id=f"p{i}",
            text=f'prompt "{i}"',
            split="train",
            clip_similarity=0.1 * i,
            recall_at_1=1.0,
            iou=math.nan if i else None,
            slug=f"s{i}",
            strip=f"strips/s{i}.png",
        )
        for i in range(3)
    ]
    write_results(tmp_path, summarize(rows, name="n", gallery=10, settings={}, seed=0))
    index = json.loads((tmp_path / "index.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert [(e["prompt"], e["id"], e["slug"], e["strip"], e["turntable"]) for e in index] == [
        (row.text, row.id, row.slug, row.strip, None) for row in rows
    ]
    assert index[0]["scores"] == {"clip_similarity": 0.0, "recall_at_1": 1.0}
    assert index[1]["scores"]["iou"] is None


def test_an_empty_selection_raises():
    with pytest.raises(ValueError, match="no prompt"):
        summarize([], name="n", gallery=1, settings={}, seed=0)
