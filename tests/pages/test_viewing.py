"""Objects in 3D: drawn from disk, one at a time, without a request outside."""

from __future__ import annotations

import pytest

from amortized.assets import AssetConfig, Source, make_asset, save_asset
from amortized.pages import MAX_FROM_DISK, document, objects_button, write_script, write_viewer
from amortized.pages.skeleton import asset
from tests.assets.shapes import CPU, Shape, box
from tests.pages.chromium import launched

NAMES = ("cube", "stra\u00dfe-1_0")
DRAWN = """() => {  // the share of the picture that is not the background
  const canvas = document.querySelector("model-viewer").shadowRoot.querySelector("canvas");
  return canvas.width * canvas.height > 0 && canvas.toDataURL().length;
}"""


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made = make_asset(Shape(box), AssetConfig(resolution=32, faces=500, texture=64), Source(prompt="a"), CPU)
    for name in NAMES:
        assert write_script(save_asset(made, folder / "objects" / name, "glb")) is not None
    write_viewer(folder / "objects")
    buttons = "".join(
        f"<div data-stage>{objects_button('objects/', {f'{name}.glb': ''}, '<b>')}</div>" for name in NAMES
    )
    page = document(title="objects", body=buttons, script=SCRIPT, frames=True)
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder


SCRIPT = asset("pages/viewing.js")


def test_an_object_is_drawn_and_one_at_a_time(browser, folder):
    """From disk; tests/gallery has objects from the server, too."""
    tab, problems = browser.new_page(), []
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    ours = (folder.as_uri(), "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
    tab.goto(f"{folder.as_uri()}/index.html")
    for number in range(2):
        tab.locator("button.view").nth(number).click()
        assert tab.locator("iframe.object").count() == 1
        frame = tab.frame_locator("iframe.object")
        frame.locator("body[data-state]").wait_for(state="attached", timeout=60_000)
        assert frame.locator("body").get_attribute("data-state") == "loaded"
        assert tab.frames[-1].evaluate(DRAWN) > 1000
    tab.keyboard.press("Escape")
    assert tab.locator("iframe.object").count() == 0
    pressed = [button.get_attribute("aria-pressed") for button in tab.locator("button.view").all()]
    assert pressed == ["false", "false"]
    tab.close()
    assert problems == []


@pytest.mark.parametrize(
    "name", ["", "../secret.glb", "missing.glb", "cube", "missing.splat", "%3Cscript%3E.glb", "a/b.glb"]
)
def test_other_names_are_refused(browser, folder, name):
    tab = browser.new_page()
    tab.goto(f"{folder.as_uri()}/objects/viewer/viewer.html#{name}")
    tab.locator("body[data-state=failed]").wait_for(state="attached", timeout=30_000)
    assert tab.locator(".problem").is_visible()
    tab.close()


def test_large_objects_have_no_script(tmp_path):
    path = tmp_path / "large.glb"
    with path.open("wb") as file:
        file.truncate(MAX_FROM_DISK + 1)
    assert write_script(path) is None and list(tmp_path.iterdir()) == [path]
