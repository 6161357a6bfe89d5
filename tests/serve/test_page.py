"""The page of a service in a headless Chromium: prompts typed, objects drawn, nothing requested outside."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.pages.chromium import FAINT, launched
from tests.rooms import ROOT
from tests.serve.page_service import color_of

TOKEN = "0123456789abcdef0123"
HOSTILE = [
    "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "\u202eterces \u2066a red cube\u2069 \u200f",
    "\U0001f9ca\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "w" * 400,
    "javascript:alert(1)//\"'`${alert(2)}",
]
# The share of the picture that has nearly a color, and the column where it begins.
SEEN = """([red, green, blue]) => {
  const canvas = document.querySelector("canvas"), { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let number = 0, first = width;
  for (let i = 0; i < data.length; i += 4) {
    const near = Math.abs(data[i] - red) + Math.abs(data[i + 1] - green) + Math.abs(data[i + 2] - blue) < 12;
    if (near) { number++; first = Math.min(first, (i / 4) % width); }
  }
  return [number / (width * height), first];
}"""
# Interactive elements without a name, by their markup.
NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, canvas, iframe, progress")]
  .filter((e) => e.checkVisibility() && !(e.getAttribute("aria-label") || e.title || e.textContent.trim()
    || e.labels?.length && [...e.labels].some((label) => label.textContent.trim())))
  .map((e) => e.outerHTML)"""


# In place of the viewer, whose WebGL takes many seconds without a GPU; one test has the true one.
STUB = """<!doctype html><body data-state="loaded"><script>
customElements.define("model-viewer", class extends HTMLElement { jumpCameraToGoal() {} });
</script><model-viewer></model-viewer>"""


@contextmanager
def serving(store: Path, *words: str) -> Iterator[str]:
    """Context: the address of a service that no other test uses."""
    command = [sys.executable, "-m", "tests.serve.page_service", str(store), *words]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as it:
        try:
            assert it.stdout is not None
            yield it.stdout.readline().strip()
        finally:
            it.kill()


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture(scope="module")
def address(tmp_path_factory, browser) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("served")) as address:
        yield address


@contextmanager
def opened(
    browser: Any, address: str, fragment: str = "", *, webgl: bool = False, **options: Any
) -> Iterator[Any]:
    """Context: the page in a tab. Fails on an error in its console, a dialog, or a request outside."""
    options = {"reduced_motion": "reduce", **options}
    tab, problems = browser.new_page(**options), list[str]()
    ours = (f"{address}/", "data:", f"blob:{address}/")
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
    if not webgl:
        tab.route("**/viewer/viewer.html", lambda route: route.fulfill(content_type="text/html", body=STUB))
    tab.goto(f"{address}/{fragment}")
    tab.locator("#facts dd").first.wait_for()
    tab.problems = problems
    yield tab
    tab.close()
    assert problems == []


def show(tab: Any, kind: str) -> None:
    tab.locator(".kind", has_text=kind).first.wait_for(timeout=150_000)


def test_a_typed_prompt_turns_and_becomes_a_mesh(browser, address):
    with opened(browser, address, webgl=True, reduced_motion="no-preference") as tab:
        assert tab.evaluate("document.activeElement.id") == "prompt"
        tab.keyboard.type("a red cube")
        tab.keyboard.press("Enter")
        show(tab, "Field")
        share, column = tab.evaluate(SEEN, list(color_of("a red cube")))
        assert 0.1 < share < 0.3
        tab.locator(".pause", has_text="Pause").wait_for()
        for _ in range(50):  # it turns by itself
            tab.wait_for_timeout(100)
            if tab.evaluate(SEEN, list(color_of("a red cube")))[1] != column:
                break
        else:
            pytest.fail("it does not turn")
        tab.locator(".pause").click()
        show(tab, "Mesh")
        viewer = tab.frame_locator("iframe").locator("model-viewer")
        assert viewer.evaluate("viewer => [viewer.loaded, viewer.autoRotate]") == [True, False]
        for turns in (True, False):
            tab.locator(".pause").click()
            assert viewer.evaluate("viewer => viewer.autoRotate") is turns
        assert tab.url.endswith("#prompt=a+red+cube")
        assert tab.locator("#prompts a[aria-current]").inner_text() == "a red cube"
        assert tab.locator("#familiarity").inner_text() == ""
        with tab.expect_download() as download:
            tab.get_by_role("button", name="Download as STL").click()
        assert re.fullmatch("[0-9a-f]{16}.stl", download.value.suggested_filename)


@pytest.mark.parametrize("prompt", HOSTILE, ids=["html", "bidi", "emoji", "long", "script"])
def test_hostile_prompts_are_text(browser, address, prompt):
    with opened(browser, address, f"#prompt={quote(prompt)}", viewport={"width": 390, "height": 800}) as tab:
        show(tab, "Field")
        assert tab.locator("#title").text_content() == prompt.strip()
        assert tab.locator("#title").get_attribute("dir") == "auto"
        assert tab.locator(".warn").text_content().startswith("No training prompt has the words")
        assert tab.locator("body img[src=x], main script").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_everything_works_by_keyboard_and_has_a_name(browser, address):
    with opened(browser, address, "#prompt=a+blue+cone") as tab:
        show(tab, "Field")
        assert tab.evaluate(NAMELESS) == []
        tab.locator("#prompt").focus()
        names = []
        for _ in range(14):
            names.append(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
            tab.keyboard.press("Tab")
        order = ["prompt", "make", "INPUT", "model", "seed", "another"]
        assert [name for name in names if name in order] == order, names
        canvas = tab.get_by_role("application")
        assert "arrow keys" in canvas.get_attribute("aria-label")
        assert tab.locator("#status").get_attribute("role") == "status"
        tab.locator("h2#gallery").wait_for()
        tree = tab.locator("main").aria_snapshot()
        for line in (
            'heading "a blue cone"',
            'button "Download as GLB"',
            'searchbox "Search the training',
        ):
            assert line in tree


def test_a_slider_leads_to_a_second_prompt(browser, address):
    with opened(browser, address, "#prompt=a+red+cube") as tab:
        show(tab, "Field")
        tab.get_by_text("Between two").click()
        tab.keyboard.type("a blue ball")
        tab.keyboard.press("Enter")
        show(tab, "Field")
        assert tab.evaluate(SEEN, list(color_of("a blue ball")))[0] > 0.1
        tab.locator("#position").focus()
        tab.keyboard.press("ArrowRight")
        tab.get_by_text("55% of the way.").wait_for()
        assert tab.url.endswith("#prompt=a+red+cube&toward=a+blue+ball&position=55")
        assert tab.locator("iframe").count() == 0 and not tab.locator("#files").is_visible()


def test_two_models_side_by_side(browser, address):
    with opened(browser, address) as tab:
        tab.locator("#prompt").fill("a red ball")
        tab.get_by_text("Two models").click()
        tab.get_by_text("Both meshes are ready.").wait_for(timeout=90_000)
        assert tab.locator("figcaption").all_inner_texts() == ["first", "second"]
        assert tab.locator("iframe[data-shown]").count() == 2
        assert "other=second" in tab.url


def test_the_gallery_is_searched_and_leads_to_objects(browser, address):
    with opened(browser, address) as tab:
        tab.locator("#prompts li").nth(23).wait_for()
        assert tab.locator("#prompts li").count() == 24
        assert (
            tab.locator("#count").inner_text()
            == "47 of 90,000 training prompts; 47 are listed, evenly spaced"
        )
        tab.get_by_role("button", name="Show more").click()
        tab.locator("#prompts li").nth(46).wait_for()
        tab.get_by_role("searchbox").fill("RED c")
        tab.locator("#prompts li").nth(24).wait_for(state="detached")
        assert tab.locator("#prompts a").all_inner_texts() == ["a red cube", "a red cone"]
        tab.locator("#prompts img").first.wait_for()
        tab.locator("#prompts a").nth(1).click()
        show(tab, "Field")
        assert tab.locator("#title").inner_text() == tab.locator("#prompt").input_value() == "a red cone"
        tab.go_back()


def test_a_mesh_that_cannot_be_shown_leaves_its_pictures(browser, address):
    with opened(browser, address) as tab:
        failed = STUB.replace("loaded", "failed")
        tab.route("**/viewer/viewer.html", lambda route: route.fulfill(content_type="text/html", body=failed))
        tab.locator("#prompt").fill("a red cone")
        tab.keyboard.press("Enter")
        tab.get_by_text("WebGL is off. It can be downloaded.").wait_for()
        assert tab.locator("iframe").count() == 0 and tab.locator(".kind").inner_text() == "Field"
        assert tab.evaluate(SEEN, list(color_of("a red cone")))[0] > 0.1


def test_problems_are_sentences(browser, address):
    with opened(browser, address, "#prompt=surfaceless") as tab:
        tab.get_by_text("the object has no surface.").wait_for(timeout=30_000)
        assert tab.locator("#status").get_attribute("data-kind") == "problem"
    with opened(browser, address, "#prompt=broken") as tab:
        tab.get_by_text("The generator failed.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_readable(browser, address, scheme):
    size = {"width": 390, "height": 800}
    with opened(browser, address, "#prompt=number+50", viewport=size, color_scheme=scheme) as tab:
        show(tab, "Field")
        tab.locator(".warn").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.evaluate(FAINT) == []
        for button in tab.locator("button:visible").all():
            assert button.bounding_box()["height"] >= 28


def test_a_token_is_asked_for_and_stays_out_of_addresses(browser, tmp_path):
    (tmp_path / "tokens.txt").write_text(f"me {TOKEN}\n")
    with serving(tmp_path / "store", str(tmp_path / "tokens.txt")) as address:
        tab, urls = browser.new_page(reduced_motion="reduce"), []
        tab.on("request", lambda request: urls.append(request.url))
        tab.route("**/viewer/viewer.html", lambda route: route.fulfill(content_type="text/html", body=STUB))
        tab.goto(f"{address}/#prompt=a+red+cube")
        for wrong in ("wrong", "\u732b"):
            tab.get_by_role("textbox", name="Token").fill(wrong)
            tab.keyboard.press("Enter")
            tab.get_by_text("does not accept this token").wait_for()
        tab.get_by_role("textbox", name="Token").fill(TOKEN)
        tab.keyboard.press("Enter")
        show(tab, "Field")
        assert TOKEN not in "".join(urls) + tab.url
        assert tab.evaluate("[Object.keys(localStorage).length, document.cookie]") == [0, ""]
        tab.close()
