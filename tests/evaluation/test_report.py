"""The report page in a real browser, opened from disk."""

from __future__ import annotations

import dataclasses
import html

import pytest
import torch

from amortized.evaluation import PromptRow, summarize, write_results
from amortized.evaluation.page import page
from amortized.media import save_strip, save_video
from amortized.pages.cards import FIRST_CARDS, MAX_CARDS
from tests.pages.chromium import launched, opened_page

EVIL = '<script>alert(1)</script> & "x"'
EVIL_KIND = '"><img src=x onerror="alert(2)">'


def make_rows(count: int = 12) -> list[PromptRow]:
    rows = []
    for i in range(count):
        rows.append(
            PromptRow(
                id=f"p{i}",
                text=EVIL if i == 3 else f"a {'red' if i % 2 else 'blue'} thing number {i}",
                split="heldout" if i % 4 == 0 else "train",
                kind=EVIL_KIND if i == 3 else f"kind-{i % 3}",
                clip_similarity=0.2 + 0.7 * ((i * 5) % count) / count,
                recall_at_1=i % 3 / 2,
                iou=None if i == 5 else 0.3 + 0.6 * ((i * 7) % count) / count,
                iou_start=0.5,
                iou_best_sphere=0.58,
                color_error=0.02 * i,
                mark_sides=(True, False, i == 9, False) if i % 3 == 0 else None,
                front_shown=1.0 if i % 3 == 0 else None,
                janus=float(i == 9) if i % 3 == 0 else None,
                strip=f"strips/p{i}.png",
                turntable=f"turntables/p{i}.mp4",
            )
        )
    return rows


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = make_rows()
    for i, row in enumerate(rows):
        frames = torch.full((6, 32, 32, 3), 0.5)
        for t in range(6):
            frames[t, 8:24, 4 + 2 * t : 14 + 2 * t] = torch.tensor([i / 12, 0.2, 0.6])
        save_strip(folder / row.strip, frames[:4])
        save_video(folder / row.turntable, frames, 6)
    name = "<b>run</b> & co"
    write_results(
        folder, summarize(rows, name=name, gallery=164, settings={"views": 4, "clip": "</script>"}, seed=0)
    )
    return folder


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture
def opened(browser, report):
    with opened_page(browser, report / "index.html", viewport={"width": 1280, "height": 900}) as tab:
        yield tab


def shown(tab) -> list[str]:
    return tab.eval_on_selector_all(".card", "cards => cards.filter(c => !c.hidden).map(c => c.dataset.id)")


def test_a_malicious_prompt_shows_as_text(opened):
    assert opened.locator('.card[data-id="p3"] h3').inner_text() == EVIL
    assert opened.locator('.card[data-id="p3"] .tags span').first.inner_text() == EVIL_KIND
    assert opened.locator("h1").inner_text() == "<b>run</b> & co"
    assert opened.locator("script").count() == 1
    assert opened.locator("h1 b").count() == 0 and opened.locator("img[src=x]").count() == 0
    opened.wait_for_timeout(200)  # time for a dialog to open


def test_media_load_and_play_from_disk(opened):
    opened.locator(".card video").first.scroll_into_view_if_needed()
    # `wait_for_function` uses eval, which the page's policy forbids.
    for _ in range(100):
        if opened.evaluate("() => document.querySelector('.card video').currentTime > 0"):
            break
        opened.wait_for_timeout(100)
    first = opened.evaluate(
        "() => { const v = document.querySelector('.card video');"
        " return [v.videoWidth, v.muted, v.loop, v.autoplay, v.playsInline, v.paused]; }"
    )
    assert first == [32, True, True, True, True, False]
    assert opened.evaluate("() => document.querySelector('.strip img').naturalWidth") == 128


def test_filter_by_text_split_and_kind(opened):
    assert len(shown(opened)) == 12 and opened.locator("#count").inner_text() == "12 of 12"
    opened.fill("#filter", "RED thing")
    assert shown(opened) == ["p1", "p5", "p7", "p9", "p11"]
    assert opened.locator("#count").inner_text() == "5 of 12"
    opened.fill("#filter", "<script>")
    assert shown(opened) == ["p3"]
    opened.fill("#filter", "")
    opened.select_option("#split", "heldout")
    assert shown(opened) == ["p0", "p4", "p8"]
    opened.select_option("#kind", "kind-1")
    assert shown(opened) == ["p4"]
    opened.fill("#filter", "no such words")
    assert shown(opened) == [] and opened.locator("#empty").is_visible()
    opened.fill("#filter", "")
    opened.select_option("#split", "")
    opened.select_option("#kind", EVIL_KIND)
    assert shown(opened) == ["p3"] and not opened.locator("#empty").is_visible()


@pytest.mark.parametrize("metric", ["recall_at_1", "clip_similarity", "iou", "color_error", "janus"])
def test_sort_by_any_score(opened, metric):
    rows = [(getattr(row, metric), i) for i, row in enumerate(make_rows())]
    last = [f"p{i}" for value, i in rows if value is None]
    scored = [(value, i) for value, i in rows if value is not None]
    opened.select_option("#sort", metric)
    assert shown(opened) == [f"p{i}" for _, i in sorted(scored)] + last
    opened.click("#direction")
    assert shown(opened) == [f"p{i}" for _, i in sorted(scored, key=lambda s: (-s[0], s[1]))] + last
    opened.click("#direction")
    opened.select_option("#sort", "index")
    assert shown(opened) == [f"p{i}" for i in range(12)]


def test_a_large_corpus_starts_with_its_first_cards(browser, report):
    """The scores are not far below; a filter and an order cover all cards; a click shows them."""
    results = summarize(make_rows(FIRST_CARDS + 9), name="n", gallery=2, settings={}, seed=0)
    (report / "large.html").write_text(page(results), encoding="utf-8")
    tab = browser.new_page()
    tab.goto((report / "large.html").as_uri())
    assert shown(tab) == [f"p{i}" for i in range(FIRST_CARDS)]
    tab.fill("#filter", f"number {FIRST_CARDS + 8}")
    assert shown(tab) == [f"p{FIRST_CARDS + 8}"] and not tab.locator("#more").is_visible()
    tab.fill("#filter", "")
    tab.click("#direction")
    assert shown(tab) == [f"p{FIRST_CARDS + 8 - i}" for i in range(FIRST_CARDS)]
    tab.click("#more")
    assert len(shown(tab)) == FIRST_CARDS + 9 and not tab.locator("#more").is_visible()
    tab.close()


def test_pictures_are_first_and_not_enlarged(browser, tmp_path, report):
    """At any width the first picture is in the window, and no picture is larger than its file."""
    for width in (1400, 390):
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.goto((report / "index.html").as_uri())
        first = tab.locator(".card video").first.bounding_box()
        assert 0 < first["y"] and first["y"] + first["height"] < 800
        for selector in (".card video", ".strip img"):  # whose sizes are known once they are loaded
            tab.wait_for_function(
                """selector => {
                    const picture = document.querySelector(selector)
                    const width = picture.videoWidth || picture.naturalWidth
                    return width && picture.getBoundingClientRect().width <= 1.001 * width
                }""",
                arg=selector,
                timeout=10_000,
            )
        tab.close()


def test_pause_stops_all_turntables(opened):
    opened.click("#pause")
    opened.wait_for_timeout(100)
    assert opened.evaluate("() => [...document.querySelectorAll('video')].every((v) => v.paused)")
    assert opened.locator("#pause").inner_text() == "Play"


def test_hostile_prompts_leave_the_page_intact(browser, tmp_path):
    """In a browser: no dialog, request, error or console message, one card each, nothing wider than it."""
    evil = [EVIL, "</script><script>alert(3)</script>", "../x", "a\0b", "\u202eevil", "x" * 10_000, "\u2028"]
    rows = [dataclasses.replace(make_rows()[0], id=f"e{i}", text=text) for i, text in enumerate(evil)]
    settings = {evil[1]: evil[1]}
    write_results(tmp_path, summarize(rows, name=evil[1], gallery=9, settings=settings, seed=0))
    tab, problems = browser.new_page(viewport={"width": 390, "height": 800}), []
    for event in ("dialog", "console", "pageerror"):
        tab.on(event, lambda what, event=event: problems.append((event, str(what))))
    tab.goto((tmp_path / "index.html").as_uri())
    tab.wait_for_timeout(200)
    assert shown(tab) == [f"e{i}" for i in range(len(evil))] and tab.locator("script").count() == 1
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert [p for p in problems if "ERR_FILE_NOT_FOUND" not in p[1]] == []  # there are no pictures
    tab.close()


def test_the_policy_blocks_markup_that_escaping_might_miss(browser, report):
    """Defense in depth: even markup that reaches the document cannot run."""
    markup = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    broken = page(summarize(make_rows(), name="n", gallery=2, settings={}, seed=0))
    broken = broken.replace("</main>", f"{markup}</main>")
    assert markup in broken
    (report / "broken.html").write_text(broken, encoding="utf-8")
    tab = browser.new_page()
    tab.goto((report / "broken.html").as_uri())
    tab.wait_for_timeout(200)
    assert tab.title() == "n"
    assert tab.locator("#count").inner_text() == "12 of 12"  # the page's own script ran
    tab.close()


def test_narrow_and_dark_pages_fit_the_window(browser, report):
    for scheme in ("light", "dark"):
        tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        tab.goto((report / "index.html").as_uri())
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
        ink, ground = (
            tab.evaluate(f"() => getComputedStyle(document.documentElement).{key}.match(/\\d+/g).map(Number)")
            for key in ("color", "backgroundColor")
        )
        assert (sum(ink) > sum(ground)) == (scheme == "dark")
        tab.close()


def test_the_page_is_one_file_without_links(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert EVIL not in text and html.escape(EVIL) in text
    assert text.count("<script>") == 1


def test_a_huge_corpus_is_truncated_with_a_note():
    rows = [
        PromptRow(id=str(i), text="t", split="train", clip_similarity=0.1, recall_at_1=0.0)
        for i in range(MAX_CARDS + 5)
    ]
    text = page(summarize(rows, name="n", gallery=2, settings={}, seed=0))
    assert text.count('<article class="card"') == MAX_CARDS
    assert f"The first {MAX_CARDS:,} of {MAX_CARDS + 5:,} prompts" in text


def test_near_duplicates_of_training_prompts_are_marked_and_scored_separately():
    near = '<b>"a cube"</b>'
    rows = [
        PromptRow(id="0", text="seen", split="train", clip_similarity=0.5, recall_at_1=1.0),
        PromptRow(
            id="1", text="near", split="heldout", clip_similarity=0.4, recall_at_1=1.0, near_train=near
        ),
        PromptRow(id="2", text="new", split="heldout", clip_similarity=0.2, recall_at_1=0.0),
    ]
    results = summarize(rows, name="n", gallery=3, settings={}, seed=0)
    means = {split: scores["recall_at_1"].mean for split, scores in results.by_split.items()}
    assert means == {"train": 1.0, "heldout": 0.5, "heldout, unlike any trained": 0.0}
    text = page(results)
    assert near not in text and f'title="{html.escape(near)}">near a trained prompt<' in text
    assert "1 of 2 held-out prompts near a trained one" in text
    assert text.count("near a trained prompt<") == 1 and "heldout, unlike any trained" in text
    assert '<option value="heldout, unlike any trained">' not in text  # the row's own split is heldout
