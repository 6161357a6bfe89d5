"""Imports of the public files (if available), their reports, and near-duplicates."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import IMPORT_FOLDER, PUBLISHED, indices_of, open_corpus
from corpora.__main__ import add_arguments, main, run
from corpora.at2520 import at2520
from corpora.nearness import near_duplicates, nearest_trained
from corpora.published import import_corpus

ROOT = Path(__file__).resolve().parents[2]
# Folder of the public files, which are not part of this project.
PUBLIC = Path(os.environ.get("PUBLIC_CORPORA", ROOT.parent / "shared" / "corpora"))


def public(name: str) -> Path:
    file = PUBLISHED[name].file
    for path in (PUBLIC / file, PUBLIC / f"t3bench_{file}"):
        if path.exists():
            return path
    pytest.skip(f"{file} is not in {PUBLIC} (set PUBLIC_CORPORA)")


@pytest.mark.parametrize(
    ("name", "entries", "unique", "trained"),
    [
        ("mg15", {"train": 15, "val": 15, "test": 15}, {"train": 15, "val": 15, "test": 15}, 15),
        ("df415", {"train": 415, "val": 16, "test": 415}, {"train": 415, "val": 16, "test": 415}, 415),
        ("at2520", {"train": 2520, "val": 56, "test": 2520}, {"train": 2520, "val": 56, "test": 2520}, 2520),
        (
            "dl17k",
            {"train": 17_241, "val": 100, "test": 100},
            {"train": 13_551, "val": 100, "test": 100},
            13_551,
        ),
        ("t3bench-single", {"test": 100}, {"test": 100}, 0),
        ("t3bench-surr", {"test": 100}, {"test": 100}, 0),
        ("t3bench-multi", {"test": 100}, {"test": 100}, 0),
    ],
)
def test_the_published_files(tmp_path: Path, name: str, entries: dict, unique: dict, trained: int):
    table, report = import_corpus(name, public(name), tmp_path)
    assert report.sha256 == PUBLISHED[name].sha256
    assert report.entries == entries == PUBLISHED[name].entries and report.unique == unique
    corpus = open_corpus(name, folder=tmp_path)
    assert len(corpus) == len(table) and len(corpus.trained) == trained
    assert int(table.repeats.sum()) == entries.get("train", 0)
    assert [corpus[index] for index in range(15)] == [table[index] for index in range(15)]


OVERLAPS = {
    "mg15": {("train", "val"): 15, ("train", "test"): 15, ("val", "test"): 15},
    "df415": {("train", "val"): 16, ("train", "test"): 415, ("val", "test"): 16},
    "at2520": {("train", "val"): 0, ("train", "test"): 2520, ("val", "test"): 0},
    "dl17k": {("train", "val"): 35, ("train", "test"): 35, ("val", "test"): 100},
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_are_reported(tmp_path: Path, name: str):
    _, report = import_corpus(name, public(name), tmp_path)
    assert report.overlaps == OVERLAPS[name]


def test_dl17k_has_repeats(tmp_path: Path):
    table, report = import_corpus("dl17k", public("dl17k"), tmp_path)
    assert report.most_repeated[1] == 201
    held_out = indices_of(table, "heldout")
    assert len(held_out) == 65  # the other 35 of its test list are also in train
    assert 5 < len(report.near) < 30 and all(0.8 <= similarity < 1 for _, similarity in report.near.values())
    assert "35 of the 100 of test are also in train" in str(report)


def test_the_grammar_of_at2520_generates_its_file():
    lists, table = json.loads(public("at2520").read_text()), at2520()
    for split, texts in lists.items():
        assert [table[int(index)].text for index in indices_of(table, split)] == texts


# ---- any file ---------------------------------------------------------------------------------


def test_another_file_raises(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text('{"train": ["a cube"]}')
    with pytest.raises(ValueError, match=f"not the published dreamfusion_415.*corpus={path}"):
        import_corpus("df415", path, tmp_path)
    with pytest.raises(ValueError, match="not a published corpus; choose one of mg15"):
        import_corpus("mine", path, tmp_path)
    with pytest.raises(ValueError, match="cannot read .*give dreamfusion_415"):
        import_corpus("df415", tmp_path / "missing.json", tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_cp100k_is_checked_by_its_structure(tmp_path: Path, capsys):
    path = tmp_path / "cap3d_100k_prompt_library.json"
    path.write_text('{"train": ["a cube", "a cone", "a cube"], "val": ["a ball"], "test": ["a cone"]}')
    assert main(["--folder", str(tmp_path), "import", "cp100k", str(path)]) == 0
    output = capsys.readouterr().out
    assert "SHA-256 " in output and "train: 3 prompts, 2 distinct" in output
    corpus = open_corpus("cp100k", folder=tmp_path)
    assert [(corpus[i].text, corpus[i].split) for i in range(3)] == [
        ("a cube", "train"),
        ("a cone", "train"),
        ("a ball", "heldout"),
    ]
    path.write_text('{"train": ["a cube"]}')
    with pytest.raises(ValueError, match="must contain the lists train, val, test, has train"):
        import_corpus("cp100k", path, tmp_path)


def test_commands(tmp_path: Path, capsys):
    folder = ["--folder", str(tmp_path)]
    assert main([*folder, "list"]) == 0
    output = capsys.readouterr().out
    assert (
        "shapes100k         110,272 prompts" in output
        and "df415            not imported: dreamfusion_415" in output
    )
    assert main([*folder, "show", "at2520", "--held-out", "0.1", "--number", "5"]) == 0
    output = capsys.readouterr().out
    assert "at2520: 2,576 prompts, " in output and " a squirrel riding a motorcycle wearing" in output
    with pytest.raises(SystemExit, match="2"):
        main([*folder, "show", "dl17k"])
    assert capsys.readouterr().err.count("\n") == 1
    assert IMPORT_FOLDER == Path("outputs/corpora")
    own, saved = tmp_path / "own.txt", tmp_path / "own.parquet"
    own.write_text("a cube\na cone\na cube\n")
    assert main(["convert", str(own), "--output", str(saved)]) == 0
    corpus = open_corpus(str(saved))
    assert [corpus[index].text for index in range(len(corpus))] == ["a cube", "a cone"]
    assert corpus.name == str(saved) and list(corpus.repeats) == [2, 1]
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(own), "--output", str(own)])
    lists = tmp_path / "lists.json"
    lists.write_text('{"train": ["a cube", "a cube"], "test": ["a cone"]}')
    for path, output in ((lists, saved), (saved, tmp_path / "again.parquet")):
        assert main(["keep", str(path), "--output", str(output)]) == 0
        corpus = open_corpus(str(output))
        assert list(corpus.trained) == [0] and list(corpus.repeats) == [2, 0]


def test_the_commands_mount_under_another_parser(tmp_path: Path, capsys):
    parser = argparse.ArgumentParser(prog="tool")
    add_arguments(parser.add_subparsers().add_parser("corpora"))
    args = parser.parse_args(["corpora", "--folder", str(tmp_path), "show", "shapes16", "--number", "2"])
    assert run(args) == 0
    assert capsys.readouterr().out.startswith("shapes16: 16 prompts, 16 to train on\n")


# ---- near-duplicates --------------------------------------------------------------------------


def test_near_duplicates_match_brute_force():
    words = "red blue green small large cube cone ball torus on under beside a the with dot".split()
    draw = Random(3)
    prompts = [" ".join(draw.sample(words, draw.randint(8, 14))) for _ in range(60)]
    trained = []
    for text in prompts:  # insert, delete, replace or swap words, or shuffle them all
        for _ in range(4):
            parts = text.split()
            index, other = draw.randrange(len(parts)), draw.randrange(len(parts))
            if (kind := draw.randrange(5)) == 0:
                parts.insert(index, "very")
            elif kind == 1:
                del parts[index]
            elif kind == 2:
                parts[index] = "gray"
            elif kind == 3:
                parts[index], parts[other] = parts[other], parts[index]
            else:
                draw.shuffle(parts)
            trained.append(" ".join(parts))

    def shingles(text: str) -> set:
        words = text.split()
        return {*words, *zip(words, words[1:], strict=False)}

    def similarity(one: str, other: str) -> float:
        return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))

    exact = {}
    for text in prompts:
        best = max(trained, key=lambda candidate: similarity(text, candidate))
        if similarity(text, best) >= 0.8:
            exact[text] = similarity(text, best)
    near = near_duplicates(prompts, trained)
    assert 20 < len(exact) < 60
    assert {text: value for text, (_, value) in near.items()}.items() <= exact.items()
    assert len(near) >= 0.9 * len(exact)


def test_the_same_words_in_another_order_are_another_prompt():
    prompt, trained = "a red cube on top of a blue sphere", "a blue cube on top of a red sphere"
    assert near_duplicates([prompt], [trained]) == {}


def test_near_duplicates_ignore_case_and_final_period():
    near = near_duplicates(["A Red Cube."], ["a red cube", "a blue cone"])
    assert near == {"A Red Cube.": ("a red cube", 1.0)}
    assert near_duplicates([], ["a red cube"]) == {}
    twins = ["A red cube", "a red cube.", "A red cube."]
    assert near_duplicates(["a red cube."], twins) == {"a red cube.": ("a red cube.", 1.0)}


WORDS = st.lists(st.sampled_from(["red", "blue", "cube", "on", "top", "A"]), min_size=1, max_size=5).map(
    " ".join
)


@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, max_size=12))
def test_the_nearest_training_prompt_is_that_of_a_search_over_all(
    prompts: list[str], trained: list[str]
) -> None:
    for text, (closest, similarity) in nearest_trained(prompts, iter(trained)).items():
        similarities = [similarity_of(text, other) for other in trained]
        assert similarity == pytest.approx(max(similarities, default=0.0))
        if similarity:
            assert similarity_of(text, closest) == pytest.approx(similarity)
            assert text not in trained or closest == text


def similarity_of(one: str, other: str) -> float:
    first, second = (
        {*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))}
        for words in (one.lower().split(), other.lower().split())
    )
    return len(first & second) / len(first | second)
