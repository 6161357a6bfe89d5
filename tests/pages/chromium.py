"""A headless Chromium, and pages opened from disk in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if os.path.exists(p)), None)
# The texts whose contrast with the background behind them is below WCAG's AA, with that contrast.
FAINT = """() => {
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const faint = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const pair = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < 4.5) faint.push([element.className, texts.currentNode.data, contrast]);
  }
  return faint;
}"""


def launched() -> Iterator[Any]:
    """For a fixture: yields the browser, or skips the test if there is none."""
    if CHROMIUM is None:
        pytest.skip("the pages were not tested: no Chromium (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="the pages were not tested: no playwright")
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def opened_page(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """Context: a page opened from disk. Fails on any dialog, console message, error or remote request."""
    tab = browser.new_page(**options)
    problems: list[str] = []

    def dismiss(dialog):
        problems.append(f"dialog {dialog.message}")
        dialog.dismiss()

    tab.on("dialog", dismiss)
    tab.on("console", lambda m: problems.append(f"console {m.type} {m.text}"))
    tab.on("pageerror", lambda error: problems.append(f"error {error}"))
    tab.on("requestfailed", lambda r: None if "mp4" in r.url else problems.append(f"failed {r.url}"))
    tab.on(
        "request",
        lambda r: None if r.url.startswith(("file://", "data:")) else problems.append(f"request {r.url}"),
    )
    tab.goto(path.as_uri())
    tab.wait_for_load_state("load")
    yield tab
    tab.wait_for_timeout(50)
    tab.close()
    assert not problems


def check_fits_and_is_readable(browser: Any, path: Path) -> None:
    """Fail if a page is wider than a narrow window, or a text is too faint, in light or dark."""
    for scheme in ("light", "dark"):
        with opened_page(browser, path, viewport={"width": 390, "height": 800}, color_scheme=scheme) as tab:
            assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
            assert tab.evaluate(FAINT) == []
            style = "getComputedStyle(document.documentElement).backgroundColor"
            ground = tab.evaluate(f"() => {style}.match(/\\d+/g).map(Number)")
            assert (sum(ground[:3]) < 200) == (scheme == "dark")
