"""Damaged and hostile input of every kind: each command ends by itself, with one sentence or a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.cases import KINDS, Originals, make_originals, run_cases

ORDINARY, MANY = 20, 400  # cases per kind
MAX_GROWTH_MIB = 1500


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return make_originals(tmp_path_factory.mktemp("originals"))


def check(kind: str, seeds: range, originals: Originals, work: Path) -> None:
    outcomes, growth = run_cases(kind, seeds, originals, work)
    wrong = [
        f"seed {o.seed}: {o.damage}\n  {' '.join(o.arguments)[:600]}\n  {o.failure}\n  {o.stderr[-300:]}"
        for o in outcomes
        if o.failure
    ]
    assert not wrong, f"{len(wrong)} of {len(outcomes)} cases\n" + "\n".join(wrong[:20])
    assert growth < MAX_GROWTH_MIB, f"peak memory grew by {growth:.0f} MiB"
    assert any(o.status == 2 for o in outcomes)  # the damage is felt


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_a_sentence_or_harmless(kind: str, originals: Originals, tmp_path: Path) -> None:
    check(kind, range(ORDINARY), originals, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_much_damaged_input_is_a_sentence_or_harmless(
    kind: str, originals: Originals, tmp_path: Path
) -> None:
    check(kind, range(ORDINARY, ORDINARY + MANY), originals, tmp_path)
