"""Paired differences against an independent calculation, and which prompts they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from amortized.comparison import compare, read_evaluations, summary
from tests.comparison.made import evaluation, row


def scores(rng, texts, shift=0.0):
    """Scores of prompts: some do not apply, some are undefined."""
    rows = []
    for number, text in enumerate(texts):
        iou = None if number % 7 == 3 else float(np.clip(rng.normal(0.5 + shift, 0.2), 0, 1))
        iou = math.nan if number % 11 == 5 else iou
        error = float(rng.uniform(0, 0.3) - shift)
        rows.append(row(text, iou=iou, color_error=error, clip_similarity=float(rng.normal(0.3, 0.1))))
    return rows


@pytest.fixture
def three(tmp_path):
    """Evaluations of 40, 35 and 30 prompts, of which each pair shares some."""
    rng = np.random.default_rng(0)
    texts = [f"prompt {number}" for number in range(50)]
    parts = (texts[:40], texts[5:40], texts[20:50])
    rows = [scores(rng, part, shift) for part, shift in zip(parts, (0.0, 0.2, 0.0), strict=True)]
    folders = [evaluation(tmp_path / f"r{n}", some, name=f"run {n}") for n, some in enumerate(rows)]
    return rows, compare(read_evaluations(folders))


@pytest.mark.parametrize("name", ["iou", "color_error", "clip_similarity", "recall_at_1"])
def test_differences_are_those_of_the_prompts_that_both_have(three, name):
    rows, comparison = three
    assert name in comparison.metrics
    for other, differences in zip(rows[1:], comparison.differences, strict=True):
        first = {one.text: getattr(one, name) for one in rows[0]}
        pairs = [(first[one.text], getattr(one, name)) for one in other if one.text in first]
        pairs = np.array([pair for pair in pairs if None not in pair], dtype=np.float64)
        pairs = pairs[np.isfinite(pairs).all(1)]
        found = differences[name]
        assert found.interval.n == len(pairs)
        assert [found.first, found.other] == pytest.approx(pairs.mean(0).tolist(), abs=1e-12)
        changes = pairs[:, 1] - pairs[:, 0]
        assert found.interval.mean == pytest.approx(changes.mean(), abs=1e-12)
        if not changes.any():
            assert found.interval.low == found.interval.high == 0 and found.verdict == "unclear"
            continue
        expected = stats.bootstrap((changes,), np.mean, n_resamples=20_000, method="percentile", rng=1)
        low, high = expected.confidence_interval
        width = high - low
        assert [found.interval.low, found.interval.high] == pytest.approx([low, high], abs=0.08 * width)
    assert comparison.differences[0]["iou"].verdict == "better"  # by construction, as is the next
    assert comparison.differences[0]["color_error"].verdict == "better"
    assert comparison.differences[1]["clip_similarity"].verdict == "unclear"


def test_prompts_are_counted_and_in_the_order_of_the_first_run(three):
    rows, comparison = three
    sets = [{one.text for one in some} for some in rows]
    assert comparison.shared == len(sets[0] & sets[1] & sets[2]) == 20
    assert list(comparison.texts) == [f"prompt {number}" for number in range(50)]
    text = summary(comparison)
    assert "not in all runs: 30 prompts" in text
    assert (
        text.count("minus run 0:") == 2 and f"{comparison.differences[0]['iou'].interval.mean:+.4f}" in text
    )


def test_nothing_in_common_and_a_single_prompt_have_no_verdict(tmp_path):
    a = evaluation(tmp_path / "a", [row("one", iou=0.1), row("two", iou=0.2)], name="a")
    b = evaluation(tmp_path / "b", [row("two", iou=0.9), row("three", iou=0.9)], name="b")
    c = evaluation(tmp_path / "c", [row("four")], name="c")
    comparison = compare(read_evaluations([a, b, c]))
    single = comparison.differences[0]["iou"]
    assert (
        single.interval.n == 1 and single.interval.mean == pytest.approx(0.7) and single.verdict == "unclear"
    )
    assert comparison.differences[1] == {} and "no prompt in common" in summary(comparison)
    assert comparison.shared == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"views": 4}, ["views: 8, 4"]),
        ({"views": 8, "seed": 3, "turntable_fps": 2.0, "prompts_per_batch": 9}, []),
        ({"views": 8, "background": 0.1}, ["background: None, 0.1"]),
    ],
)
def test_settings_that_change_scores_are_named(tmp_path, settings, named):
    a = evaluation(tmp_path / "a", [row("one")], settings={"views": 8, "seed": 0})
    b = evaluation(tmp_path / "b", [row("one")], settings=settings, name="b")
    assert list(compare(read_evaluations([a, b])).other_settings) == named
