"""Prompt orders cover the corpus exactly, for any number of processes, from any step, at any size."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from amortized.training import PromptOrderConfig
from amortized.training.batches import assign_slots
from amortized.training.prompt_order import Curriculum, Shuffle, Weighted, build_prompt_order, shuffled
from corpora import prompt_list
from corpora.table import Entry, tabulate
from tests.training.test_batches import make_sampler

# ---- the shuffle ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 1500), st.integers(0, 2**63 - 1))
def test_a_shuffle_is_a_permutation(size: int, key: int):
    assert sorted(shuffled(index, size, key) for index in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [10_007, 65_536])
def test_a_large_shuffle_is_a_permutation(size: int):
    assert len({shuffled(index, size, 5) for index in range(size)}) == size


@pytest.mark.parametrize("size", [3, 4])
def test_every_permutation_of_a_few_is_equally_likely(size: int):
    trials = 200 * len(list(permutations(range(size))))
    frequency = Counter(tuple(shuffled(index, size, key) for index in range(size)) for key in range(trials))
    counts = [frequency[order] for order in permutations(range(size))]
    assert chisquare(counts).pvalue > 1e-3, counts


@pytest.mark.parametrize("size", [16, 96, 10_000])
def test_every_position_is_equally_likely_for_every_prompt(size: int):
    octiles = [shuffled(index, size, key) * 8 // size for key in range(500) for index in (0, 1, size - 1)]
    assert chisquare(list(Counter(octiles).values())).pvalue > 1e-3


def test_neighbors_do_not_stay_together():
    size = 1000
    gaps = [abs(shuffled(i, size, key) - shuffled(i + 1, size, key)) for key in range(3) for i in range(999)]
    # Two independent positions are a third of the size apart on average.
    assert np.mean(gaps) == pytest.approx(size / 3, rel=0.06) and gaps.count(1) < 20


def test_the_order_never_changes():
    """A run that is resumed with another version must continue in the same order."""
    assert [shuffled(index, 10, 7) for index in range(10)] == [0, 5, 4, 3, 9, 2, 7, 1, 8, 6]
    assert [Shuffle(10**7, 3).at(position) for position in range(4)] == [8045921, 6664103, 5246881, 7158990]


@pytest.mark.parametrize("index", [-1, 5, 6])
def test_an_index_out_of_range_is_refused(index: int):
    with pytest.raises(IndexError, match=rf"{index} is not in range\(5\)"):
        shuffled(index, 5, 0)


def test_memory_is_constant_at_ten_million():
    """Over the end of the first epoch, construction included: there is no table of ten million indices."""
    num = 10_000_000
    tracemalloc.start()
    order = Shuffle(num, 0)
    drawn = {order.at(position) for position in range(num - 10_000, num + 10_000)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) > 19_000 and max(drawn) < num
    assert peak < 20_000 * 200  # the size of `drawn`


def test_every_epoch_shows_each_prompt_once_in_another_order():
    order = [Shuffle(11, 0).at(position) for position in range(33)]
    epochs = [order[:11], order[11:22], order[22:]]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order != [Shuffle(11, 1).at(position) for position in range(33)]


# ---- processes and steps ----------------------------------------------------------------------


def global_batches(
    order, world_size: int, steps: range, *, prompts: int, num_parts: int = 1, start: int = 0
) -> list[list[int]]:
    """The prompt indices of all ranks' batches together: a list per step, in the order of the slots."""
    sampler, per_step = make_sampler(order=order), world_size * num_parts * prompts
    batches = []
    for step in steps:
        by_slot = {}
        for rank in range(world_size):
            for part in assign_slots(rank, world_size, num_parts, prompts):
                batch = sampler.draw(step, part, start + (step - steps.start) * per_step)
                by_slot |= dict(zip(part, batch.prompt_indices, strict=True))
        batches.append([by_slot[slot] for slot in range(per_step)])
    return batches


@pytest.mark.parametrize(("world_size", "num_parts"), [(1, 24), (2, 12), (3, 8), (8, 3), (24, 1)])
def test_the_global_order_is_the_same_for_any_number_of_processes(world_size: int, num_parts: int):
    """Over two epochs whose size the batch of 48 does not divide."""
    sizes = {"prompts": 2, "num_parts": num_parts}
    batches = global_batches(Shuffle(101, 4), world_size, range(5), **sizes)
    assert sum(batches, []) == [Shuffle(101, 4).at(position) for position in range(5 * 48)]
    # A resume needs only the step and its position in the order.
    assert global_batches(Shuffle(101, 4), world_size, range(3, 5), **sizes, start=3 * 48) == batches[3:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 1024])
def test_each_prompt_exactly_once_per_epoch(world_size: int):
    num = 1500
    steps = range(-(-2 * num // (2 * world_size)))
    order = sum(global_batches(Shuffle(num, 9), world_size, steps, prompts=2), [])
    assert order[: 2 * num] == [Shuffle(num, 9).at(position) for position in range(2 * num)]
    assert sorted(order[:num]) == sorted(order[num : 2 * num]) == list(range(num))


# ---- weights ----------------------------------------------------------------------------------


def test_a_prompt_is_drawn_in_proportion_to_its_weight():
    weights = np.array([1.0, 2.5, 0.0, 0.25, 6.25])
    order = Weighted(weights, 3)
    num, total = len(weights), Counter()
    for epoch in range(400):
        counts = Counter(order.at(epoch * num + position) for position in range(num))
        for prompt, weight in enumerate(weights):
            expected = num * weight / weights.sum()
            assert np.floor(expected) <= counts[prompt] <= np.ceil(expected)  # in every epoch
        total += counts
    expected = 400 * num * weights / weights.sum()
    assert [total[prompt] for prompt in range(num)] == pytest.approx(expected.tolist(), abs=40)


def test_equal_weights_are_a_shuffle():
    order = Weighted(np.ones(17), 3)
    epochs = [[order.at(17 * epoch + position) for position in range(17)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_invalid_weights_are_refused(weights: list[float]):
    with pytest.raises(ValueError, match="finite, none negative, and not all zero"):
        Weighted(np.array(weights), 0)


# ---- curriculum -------------------------------------------------------------------------------


def test_each_pass_of_a_curriculum_covers_more_prompts():
    ranking = np.array([7, 3, 5, 0, 1, 2, 9, 8, 6, 4])
    order = Curriculum(ranking, 5, start=0.1, passes=3)
    sizes = [1, 4, 10]  # 10 * 0.1, 10 * 0.1 ** 0.5 rounded up, 10
    drawn = [order.at(position) for position in range(sum(sizes) + 20)]
    start = 0
    for size in [*sizes, 10, 10]:
        assert sorted(drawn[start : start + size]) == sorted(ranking[:size].tolist())
        start += size
    assert drawn[5:15] != drawn[15:25]


# ---- settings ---------------------------------------------------------------------------------

TEXTS = ["a very long prompt indeed", "two words", "three words here", "one"]


def results(folder: Path, scores: dict[str, object]) -> Path:
    """Write a results.json with the recall@1 of prompts, by id."""
    path = folder / "results.json"
    path.write_text(json.dumps({"prompts": [{"id": k, "recall_at_1": v} for k, v in scores.items()]}))
    return path


def test_orders_of_a_corpus(tmp_path: Path):
    corpus = prompt_list(TEXTS, "mine")
    ids = [corpus[index].id for index in range(4)]
    assert build_prompt_order(PromptOrderConfig(), corpus, 3) == Shuffle(4, 3)
    short = build_prompt_order(PromptOrderConfig(kind="curriculum", start=0.25, passes=4), corpus, 3)
    assert [short.at(0), sorted(short.at(p) for p in (1, 2))] == [3, [1, 3]]
    path = str(results(tmp_path, dict(zip(ids, [0.1, 0.2, 0.9, 0.3], strict=True))))
    best = build_prompt_order(PromptOrderConfig(kind="curriculum", by=path, start=0.25, passes=4), corpus, 3)
    assert [best.at(0), sorted(best.at(p) for p in (1, 2))] == [2, [2, 3]]
    path = str(results(tmp_path, {ids[2]: 0.1, ids[3]: 0.9}))  # prompts without a score come last
    some = build_prompt_order(PromptOrderConfig(kind="curriculum", by=path, start=0.25, passes=4), corpus, 3)
    assert [some.at(0), sorted(some.at(p) for p in (1, 2))] == [3, [2, 3]]
    path = str(results(tmp_path, dict(zip(ids, [0.1, 0.2, 0.9, 0.3], strict=True))))
    weighted = build_prompt_order(PromptOrderConfig(kind="weighted", by=path), corpus, 3)
    counts = Counter(weighted.at(position) for position in range(4000))
    expected = [0.1 / 1.5, 0.2 / 1.5, 0.9 / 1.5, 0.3 / 1.5]
    assert [counts[i] / 4000 for i in range(4)] == pytest.approx(expected, abs=0.01)


def test_repeated_prompts_weigh_more():
    """Of the training prompts a (three times) and c (once); b is held out."""
    rows = [("a", "train"), ("b", "val"), ("c", "train"), ("a", "train"), ("a", "train")]
    table = tabulate([Entry(text, split, "here") for text, split in rows], "mine")
    order = build_prompt_order(PromptOrderConfig(kind="weighted"), table, 0)
    counts = Counter(order.at(position) for position in range(400))
    assert set(counts) == {0, 1} and abs(counts[0] - 300) < 20


def test_invalid_order_settings_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="by must be null or"):
        PromptOrderConfig(by="length")
    with pytest.raises(ValueError, match=r"start must lie in \(0, 1\], got 0"):
        PromptOrderConfig(kind="curriculum", start=0)
    with pytest.raises(ValueError, match="passes must be at least 1"):
        PromptOrderConfig(kind="curriculum", passes=0)
    corpus = prompt_list(TEXTS, "mine")
    path = results(tmp_path, {corpus[0].id: 1.0, corpus[1].id: None})
    with pytest.raises(
        ValueError, match=f"{path} has no recall_at_1 for 3 of 4 training prompts, the first is"
    ):
        build_prompt_order(PromptOrderConfig(kind="weighted", by=str(path)), corpus, 0)
    path = results(tmp_path, {"another": 1.0})
    with pytest.raises(ValueError, match="has no recall_at_1 for 4 of 4 training prompts"):
        build_prompt_order(PromptOrderConfig(kind="curriculum", by=str(path)), corpus, 0)
    for text in ("", "{}", '{"prompts": 7}', '{"prompts": [7]}', '{"prompts": [{"id": "x"}]}'):
        path.write_text(text)
        with pytest.raises(
            ValueError, match=f"prompt_order.by: {path} is not a results.json with a column recall_at_1"
        ):
            build_prompt_order(PromptOrderConfig(kind="curriculum", by=str(path)), corpus, 0)
    with pytest.raises(ValueError, match="is not a results.json"):
        build_prompt_order(PromptOrderConfig(kind="curriculum", by="missing.json"), corpus, 0)
