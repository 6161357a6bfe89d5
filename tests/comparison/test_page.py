"""The page of a comparison: hostile text stays text, gaps are shown; in a browser it sorts and filters."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from amortized.commands.view import FolderServer
from amortized.comparison import compare, read_evaluations, write_comparison
from amortized.comparison.cards import MAX_CARDS
from amortized.comparison.page import page
from tests.comparison.made import evaluation, row, run
from tests.pages.chromium import check_fits_and_is_readable, launched, opened_page
from tests.pages.html import HOSTILE, parse, structure

RNG = np.random.default_rng(0)
MEDIA = ("split", "kind", "near_train", "slug", "strip", "truth_strip", "object", "turntable")
IOU = RNG.uniform(0, 1, (3, 12)).round(3)


def rows_of(number: int) -> list:
    """The rows of a run: run 1 lacks prompt 2, run 2 has no IoU for prompt 4."""
    return [
        row(
            f"a {'red' if i % 2 else 'blue'} thing number {i}",
            iou=None if (number, i) == (2, 4) else float(IOU[number, i]),
            strip=f"strips/p{i}.png",
            truth_strip=f"truth/p{i}.png" if number == 0 else None,
        )
        for i in range(12)
        if (number, i) != (1, 2)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("comparison")
    runs = [run(place / f"run-{number}", rows_of(number)) for number in range(3)]
    for one in runs:
        if not (one / "evaluation/truth").exists():
            shutil.copytree(one / "evaluation/strips", one / "evaluation/truth")
    (place / "page").mkdir()
    write_comparison(place / "page", compare(read_evaluations(runs)))
    return place / "page"


def of_text(text: str, place: Path) -> str:
    """A page in which a text stands wherever one can."""
    folders = []
    for number in range(2):
        made = evaluation(place / str(number), [row("TEXT", iou=0.5), row(f"TEXT {number}", iou=0.25)])
        data = json.loads((made / "results.json").read_text())
        for one in data["prompts"]:
            one |= {key: one[key].replace("TEXT", text) for key in ("id", "text")}
            one |= {key: text for key in MEDIA}
        data["name"] = f"{text}{number}"
        data["settings"] = {text: text * (number + 1), "views": number}
        data["provenance"] = dict.fromkeys(("method", "checkpoint", "corpus", "date", "prompts"), text)
        (made / "results.json").write_text(json.dumps(data))
        folders.append(made)
    comparison = compare(read_evaluations(folders))
    (place / "page").mkdir()
    write_comparison(place / "page", comparison)
    return (place / "page/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_changes_no_element(text, tmp_path):
    shown = of_text(text, tmp_path / "hostile")
    assert structure(shown) == structure(of_text("a cube", tmp_path / "harmless"))
    shown.encode("utf-8")
    assert len(shown) < 100_000


def test_gaps_are_shown_and_counted(folder):
    html = (folder / "index.html").read_text(encoding="utf-8")
    parsed = parse(html)
    prompts = [a for _, a in parsed.elements if a.get("class") == "prompt"]
    assert [a["data-presence"] for a in prompts].count("some") == 1 and len(prompts) == 12
    assert html.count(">not evaluated</div>") == 1 and "11 in all of them, 1 only in some" in html
    expected = [f"{value:.6g}" for value in IOU[:, 0]]
    assert [scores.split(",")[-1] for scores in prompts[0]["data-scores"].split("|")] == expected
    images = [a for tag, a in parsed.elements if tag == "img"]
    assert len(images) == 3 * 12 - 1 + 12  # the runs without the gap, and the truth
    for attributes in images:
        assert attributes["loading"] == "lazy" and attributes["alt"] and int(attributes["width"]) == 64
        assert (folder / attributes["src"]).is_file() and not (folder / attributes["src"]).is_symlink()


def test_the_scores_of_previews_are_curves_of_the_runs_that_have_them(tmp_path):
    folders = [run(tmp_path / name, [row("a")]) for name in ("scored", "plain", "too")]
    for one, start in zip(folders, (0.25, None, 0.125), strict=True):
        with (one / "log.jsonl").open("a") as log:
            for step in (4, 9) if start else ():
                log.write(json.dumps({"step": step, "preview/clip_similarity": start * step / 4}) + "\n")
    parsed = parse(page(compare(read_evaluations(folders)), {}))
    labels = [a["aria-label"] or "" for tag, a in parsed.elements if tag == "svg" and "aria-label" in a]
    assert len(labels) == 3 and labels[-1] == (
        "CLIP similarity of the previews: scored from 0.250 to 0.562; too from 0.125 to 0.281, "
        "between 0.125 and 0.562"
    )


def test_the_numbers_are_in_files(folder):
    with (folder / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = [f"run-{number}: iou" for number in range(3)]
    assert [[line[name] for name in columns] for line in table][4] == [str(IOU[0, 4]), str(IOU[1, 4]), ""]
    assert table[2]["run-1: iou"] == ""
    differences = json.loads((folder / "comparison.json").read_text())["differences"]
    assert differences[0]["scores"]["iou"]["interval"]["n"] == 11
    expected = np.delete(IOU[1] - IOU[0], 2).mean()
    assert differences[0]["scores"]["iou"]["interval"]["mean"] == pytest.approx(expected)


def test_many_prompts_are_truncated_with_a_note(tmp_path):
    rows = [row(f"p{number}") for number in range(MAX_CARDS + 5)]
    folders = [evaluation(tmp_path / name, rows, name=name) for name in "ab"]
    text = page(compare(read_evaluations(folders)), {})
    assert text.count('<div class="prompt"') == MAX_CARDS
    assert f"The first {MAX_CARDS:,} of {MAX_CARDS + 5:,} prompts are shown" in text
    assert f"{MAX_CARDS + 5:,} prompts, " in text  # of the differences


# ---- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture
def opened(browser, folder):
    with opened_page(browser, folder / "index.html", viewport={"width": 1280, "height": 900}) as tab:
        yield tab


def shown(tab) -> list[int]:
    code = "cards => cards.filter(c => !c.hidden).map(c => Number(c.dataset.index))"
    return tab.eval_on_selector_all(".prompt", code)


def test_columns_sort_by_difference_and_score_with_the_keyboard(opened):
    def expected(values, sign):
        last = [i for i, value in enumerate(values) if np.isnan(value)]
        scored = [i for i, value in enumerate(values) if not np.isnan(value)]
        return sorted(scored, key=lambda i: (sign * values[i], i)) + last

    iou = IOU.copy()
    iou[1, 2] = iou[2, 4] = np.nan
    column = opened.locator('[role="columnheader"]', has_text="IoU").first
    column.locator("button").focus()
    opened.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    assert shown(opened) == expected(iou[1] - iou[0], 1)
    opened.keyboard.press("Space")
    assert column.get_attribute("aria-sort") == "descending"
    assert opened.locator('[aria-sort="none"]').count() == opened.locator("[aria-sort]").count() - 1
    assert shown(opened) == expected(iou[1] - iou[0], -1)
    opened.select_option("#by", "2 0")
    assert shown(opened) == expected(iou[2] - iou[0], -1)
    opened.select_option("#by", "0")
    assert shown(opened) == expected(iou[0], -1)
    opened.locator("button", has_text="Prompt").press("Enter")
    assert shown(opened) == list(range(12))


def test_filters(opened):
    opened.fill("#filter", "RED thing")
    assert shown(opened) == [1, 3, 5, 7, 9, 11] and opened.locator("#count").inner_text() == "6 of 12"
    opened.fill("#filter", "no such words")
    assert shown(opened) == [] and opened.locator("#empty").is_visible()
    opened.fill("#filter", "")
    opened.select_option("#presence", "some")
    assert shown(opened) == [2]
    opened.select_option("#presence", label="in all runs")
    assert len(shown(opened)) == 11


def test_the_folder_can_be_moved(browser, folder, tmp_path):
    """Away from the runs, which are then gone for the page."""
    shutil.copytree(folder, tmp_path / "moved/page")
    with opened_page(browser, tmp_path / "moved/page/index.html") as tab:
        tab.locator(".prompt img").first.scroll_into_view_if_needed()
        tab.wait_for_timeout(200)
        assert tab.evaluate("() => document.querySelector('.prompt img').naturalWidth") == 64
        for href in tab.eval_on_selector_all(
            "a[download]", "links => links.map(l => l.getAttribute('href'))"
        ):
            assert (tmp_path / "moved/page" / href).is_file()


def test_the_page_works_when_it_is_served(browser, folder):
    """The policy of the server admits the scripts of pages, and its pictures are sent."""
    with FolderServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab = browser.new_page()
        tab.goto(server.url)
        tab.wait_for_load_state("load")
        assert tab.locator("#count").inner_text() == "12 of 12"
        assert tab.evaluate("() => document.querySelector('.prompt img').naturalWidth") == 64
        tab.close()
        server.shutdown()


def test_a_narrow_page_fits_and_all_texts_are_readable(browser, folder, tmp_path):
    check_fits_and_is_readable(browser, folder / "index.html")
    (tmp_path / "index.html").write_text(of_text("x" * 5000, tmp_path / "long"), encoding="utf-8")
    check_fits_and_is_readable(browser, tmp_path / "index.html")
