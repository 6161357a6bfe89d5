"""The page as HTML: hostile text stays text, whatever it holds, in every place that shows it."""

from __future__ import annotations

import random

import pytest

from amortized.evaluation import PromptRow, summarize, write_results
from amortized.evaluation.page import DOWNLOADS, duration, page
from amortized.pages.history import History
from amortized.pages.markup import TEXT_LIMIT
from tests.pages.html import HOSTILE, parse, structure


def row(text: str, key: str = "p", **more) -> PromptRow:
    media = {name: f"{text[:60]}.{name}" for name in ("strip", "truth_strip", "turntable")}
    values = {"split": text, "kind": text, "near_train": text, **media}
    values |= {"clip_similarity": 0.5, "recall_at_1": 1.0, "iou": 0.5, **more}
    return PromptRow(id=f"{key}{text}", text=text, **values)


def page_of(*texts: str) -> str:
    first = texts[0]
    results = summarize(
        [row(text, str(i)) for i, text in enumerate(texts)],
        name=first,
        gallery=9,
        settings={"views": 4, "clip": first, first: first},
        seed=0,
        provenance={"method": first, "commit": first, "config": first, "step": 1, "steps": 2},
    )
    history = History(curves={"loss": [(1.0, 2.0), (2.0, 1.0)]}) if len(texts) % 2 else History(note=first)
    return page(results, history)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_changes_no_element(text):
    """The page has the elements and attributes that it has for a harmless text, in the same order."""
    for texts in ((text,), (text, text + "b")):
        harmless = ("a cube",) if len(texts) == 1 else ("a cube", "a cubeb")
        assert structure(page_of(*texts)) == structure(page_of(*harmless))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_bounded_and_without_control_characters(text, tmp_path):
    html = page_of(text)
    html.encode("utf-8")
    assert not any(
        ord(c) < 32 and c != "\n" or "\u202a" <= c <= "\u202e" or c in "\u2028\u2029\x7f" for c in html
    )
    assert len(html) < 100_000
    parsed = parse(html)
    (heading,) = [words for tag, words in parsed.texts if tag == "bdi"][:1] or [""]
    expected = " ".join(text.split())
    if expected.isprintable() and len(expected) < 100:
        assert heading == expected
    shown = [words for tag, words in parsed.texts if tag not in ("style", "script")]
    assert max(map(len, shown)) <= TEXT_LIMIT + 20
    for _, attributes in parsed.elements:
        for name in ("src", "href", "poster"):
            link = attributes.get(name)
            assert link is None or not link.lower().startswith(("javascript:", "http", "//"))


def test_random_text_changes_no_element():
    rng, letters = random.Random(0), "<>\"'&=/ -!abc\0\n\u202e\u2028`{}#;x"
    expected = structure(page_of("a cube"))
    for _ in range(100):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(1, 60)))
        assert structure(page_of(text)) == expected, repr(text)


def test_pictures_come_first_and_every_part_is_reached_by_a_link():
    parsed = parse(page_of("a cube", "a cone", "a ball"))
    headings = [words for tag, words in parsed.texts if tag == "h2"]
    assert headings == ["Pictures", "Scores", "Training", "Provenance", "Downloads"]
    targets = {attributes.get("id") for _, attributes in parsed.elements}
    links = [attributes["href"] for tag, attributes in parsed.elements if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    assert [link for link in links if link in DOWNLOADS] == list(DOWNLOADS)
    for tag, attributes in parsed.elements:  # text alternatives, and sizes that stay while pictures load
        assert tag != "img" or (attributes["alt"] and attributes["loading"] == "lazy")
        assert tag not in ("video", "svg") or attributes["aria-label"]


def test_the_title_names_the_run_and_method_and_a_single_prompt():
    def title(*rows, **provenance) -> str:
        results = summarize(rows, name="my-run", gallery=9, settings={}, seed=0, provenance=provenance)
        return next(words for tag, words in parse(page(results)).texts if tag == "title")

    one, two = row("a red cone", split="train"), row("a cube", split="train")
    assert title(one, two) == "my-run" and title(one, two, method="asd") == "my-run · asd"
    assert title(one, method="asd") == "a red cone · my-run · asd"


def test_downloads_exist(tmp_path):
    results = summarize([row("a cube")], name="n", gallery=9, settings={}, seed=0)
    for config in (None, "output: x\n"):
        write_results(tmp_path, results, config_yaml=config)
        parsed = parse((tmp_path / "index.html").read_text(encoding="utf-8"))
        listed = [attributes["href"] for tag, attributes in parsed.elements if "download" in attributes]
        assert ("config.yaml" in listed) == (config is not None) and len(listed) >= 3
        assert all((tmp_path / name).is_file() for name in listed)


def test_durations():
    seconds = (0, 59.4, 60, 210, 3599, 3600, 40_000)
    assert [duration(s) for s in seconds] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 30 s",
        "59 min 59 s",
        "1 h 0 min",
        "11 h 6 min",
    ]


def test_the_page_says_how_splats_are_scored():
    for splats in (True, False):
        rows = [row("a cube", splats=splats)]
        html = page(summarize(rows, name="run", gallery=9, settings={}, seed=0), History(note="none"))
        assert ("Splats have no surface" in html) == splats
