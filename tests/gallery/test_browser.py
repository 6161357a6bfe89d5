"""The page of generate in a real browser: from disk and from `amortized view`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from amortized.assets import AssetConfig, Source, make_asset, save_asset
from amortized.commands.view import FolderServer
from amortized.gallery import write_page
from amortized.gallery.page import FIRST
from tests.assets.shapes import CPU, Shape, box
from tests.gallery.folders import LOOK, entry, write_files
from tests.pages.chromium import check_fits_and_is_readable, launched, opened_page

EVIL = '<script>alert(1)</script> & "x"'
PROMPTS = ("a red cube", EVIL, "\u202egnp \u0645\u0643\u0639\u0628", "word " * 2000, "x" * 10_000)
DRAWN = """() => {  // how much the picture holds
  const canvas = document.querySelector("model-viewer").shadowRoot.querySelector("canvas");
  return canvas.width * canvas.height > 0 && canvas.toDataURL().length;
}"""


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    made = make_asset(Shape(box), AssetConfig(resolution=32, faces=500, texture=64), Source(prompt="a"), CPU)
    glb = save_asset(made, folder / "glb", "glb").read_bytes()
    formats = (("png", "mp4", "glb", "stl"), ("glb",), ("png",), ("webp",), ("stl",))
    entries = [
        entry(f"n{i}_0", prompt, *formats[i], model=f"step {i % 2}") for i, prompt in enumerate(PROMPTS)
    ]
    way = entry("way_0", "", "png", "mp4", prompts=["a cone", "a ball"], model="step 0")
    del way["prompt"]
    rows = entry("rows_0", "rows", "png", model="step 0")
    rows["files"]["png"]["settings"] = LOOK | {"show": ["rgb", "normal"], "views": 4, "background": [1, 0, 0]}
    write_files(folder, [*entries, way, rows], glb)
    assert write_page(folder, [*entries, way, rows]) == ""
    return folder


def shown(tab) -> list[str]:
    return tab.eval_on_selector_all(
        ".card", "cards => cards.filter(c => !c.hidden).map(c => c.dataset.index)"
    )


def wait_for(tab, expression: str) -> None:
    """`wait_for_function` uses eval, which the page's policy forbids."""
    for _ in range(200):
        if tab.evaluate(f"() => {expression}"):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


@pytest.mark.parametrize("served", [False, True], ids=["from disk", "served"])
def test_videos_play_and_objects_open_in_3d_without_a_request_outside(browser, folder, served):
    with FolderServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = server.url if served else f"{folder.as_uri()}/"
        tab, problems = browser.new_page(viewport={"width": 1280, "height": 900}), []
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: problems.append(dialog.message))
        ours = (origin, "data:", "blob:")
        tab.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
        tab.goto(f"{origin}index.html")
        wait_for(tab, "document.querySelector('.card video').currentTime > 0")
        wait_for(tab, "document.querySelector('.card img').naturalWidth > 0")
        assert tab.locator(".card h3").nth(1).inner_text() == EVIL
        tab.locator("button.view").first.focus()
        tab.keyboard.press("Enter")
        frame = tab.frame_locator("iframe.object")
        frame.locator("body[data-state]").wait_for(state="attached", timeout=60_000)
        assert frame.locator("body").get_attribute("data-state") == "loaded"
        assert tab.frames[-1].evaluate(DRAWN) > 1000
        # The button stays above the object, and closes it.
        box = tab.locator("button.view").first.bounding_box()
        at = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
        assert tab.evaluate("at => document.elementFromPoint(...at).textContent", at) == "Close"
        tab.keyboard.press("Escape")
        assert tab.locator("iframe.object").count() == 0
        tab.close()
        server.shutdown()
    assert problems == []


def test_cards_are_filtered_and_ordered(browser, folder):
    with opened_page(browser, folder / "index.html", viewport={"width": 1280, "height": 900}) as tab:
        everything = [str(i) for i in range(7)]
        assert shown(tab) == everything
        tab.fill("#filter", "CUBE red")
        assert shown(tab) == ["0"] and tab.locator("#count").inner_text() == "1 of 7"
        tab.fill("#filter", "<script>")
        assert shown(tab) == ["1"]
        tab.fill("#filter", "ball cone")  # both ends of a way
        assert shown(tab) == ["5"]
        tab.fill("#filter", "")
        tab.select_option("#model", "step 1")
        assert shown(tab) == ["1", "3"]
        tab.select_option("#model", "")
        tab.click("#direction")
        assert shown(tab) == everything[::-1]


def test_paused_cards_do_not_move(browser, folder):
    """By the button, and from the start for those who asked the system for less motion."""
    page = folder / "index.html"
    for motion in ("no-preference", "reduce"):
        with opened_page(
            browser, page, reduced_motion=motion, viewport={"width": 1280, "height": 2000}
        ) as tab:
            wait_for(tab, "document.querySelector('.card video').readyState >= 2")
            if motion == "no-preference":
                wait_for(tab, "document.querySelector('img[data-animated]').complete")
                tab.click("#pause")
            wait_for(tab, "!document.querySelector('img[data-animated]')")
            assert tab.evaluate("() => [...document.querySelectorAll('video')].every((v) => v.paused)")
            assert tab.locator("canvas[role=img]").get_attribute("aria-label").startswith("Animation of")
            assert tab.locator("#pause").inner_text() == "Play"
            tab.click("#pause")
            wait_for(tab, "!document.querySelector('.card video').paused")
            assert tab.locator("img[data-animated]").count() == 1


def test_the_page_fits_and_is_readable(browser, folder):
    check_fits_and_is_readable(browser, folder / "index.html")


def test_a_large_folder_loads_what_is_in_the_window(browser, folder, tmp_path):
    """Videos out of the window are not loaded: a browser refuses to hold more than some 75 of them."""
    made = [entry("n0_0", f"prompt {i}", "png", "mp4") | {"name": f"n{i}"} for i in range(FIRST + 300)]
    for name in ("n0_0.png", "n0_0.mp4"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert write_page(tmp_path, made) == ""
    loaded = "document.querySelectorAll('video[src]').length"
    with opened_page(browser, tmp_path / "index.html", viewport={"width": 1280, "height": 900}) as tab:
        assert len(shown(tab)) == FIRST
        wait_for(tab, f"{loaded} > 0")
        tab.click("#more")
        assert (
            len(shown(tab)) == FIRST + 240 and tab.locator("#more").inner_text() == f"Show all {FIRST + 300}"
        )
        tab.click("#more")
        assert len(shown(tab)) == FIRST + 300 and not tab.locator("#more").is_visible()
        # The keyboard's place in the page is not lost with the button.
        assert tab.evaluate("() => document.activeElement.closest('.card').dataset.index") == str(FIRST + 240)
        for share in (0.5, 1, 0):
            tab.evaluate(f"() => window.scrollTo(0, {share} * document.documentElement.scrollHeight)")
            tab.wait_for_timeout(200)
            assert 0 < tab.evaluate(f"() => {loaded}") < 30
        wait_for(tab, "document.querySelector('.card video').currentTime > 0")


def test_the_policy_blocks_markup_that_escaping_might_miss(browser, folder):
    markup = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    page = (folder / "index.html").read_text(encoding="utf-8").replace("</main>", f"{markup}</main>")
    path = Path(folder / "broken.html")
    path.write_text(page, encoding="utf-8")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    tab.wait_for_timeout(200)
    assert tab.title() != "run" and tab.locator("#count").inner_text() == "7 of 7"
    tab.close()
    path.unlink()
