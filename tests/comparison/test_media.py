"""Objects and turntables of a comparison: whose they are, what is refused, and how they open in a browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import torch

from amortized.assets import AssetConfig, Source, make_asset, save_asset
from amortized.commands.view import FolderServer
from amortized.comparison import compare, read_evaluations, write_comparison
from amortized.evaluation.folder import COMPARE, foreign_files
from amortized.media import save_video
from amortized.pages import find_media, objects_button, video_button
from amortized.pages.markup import one_line
from tests.assets.shapes import CPU, Shape, box
from tests.comparison.made import evaluation, row, run
from tests.pages.chromium import launched
from tests.pages.html import HOSTILE, parse

# The prompts of each run, by whether they have an object and a turntable.
RUNS = {
    "first": {"a cube": (True, True), "a ball": (True, True), "a cone": (False, True)},
    "<b>second</b>": {"a cube": (True, True), "a ball": (False, False), "a cone": (False, True)},
    "third": {"a ball": (False, True), "a ring": (False, False)},
}


@pytest.fixture(scope="module")
def glbs(tmp_path_factory) -> list[bytes]:
    """The objects of each run: boxes of different sizes."""
    config, folder = AssetConfig(resolution=32, faces=200, texture=64), tmp_path_factory.mktemp("object")
    shapes = [Shape(lambda points, scale=scale: box(points * scale) / scale) for scale in (2.0, 1.0, 1.5)]
    made = [make_asset(shape, config, Source(prompt="a"), CPU) for shape in shapes]
    return [save_asset(one, folder / str(n), "glb").read_bytes() for n, one in enumerate(made)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, glbs) -> Path:
    """A comparison of RUNS, which are gone."""
    place = tmp_path_factory.mktemp("comparison")
    folders = []
    for number, (name, prompts) in enumerate(RUNS.items()):
        rows = []
        for text, (has_object, has_turntable) in prompts.items():
            stem = text.replace(" ", "-")
            media = {"object": f"objects/{stem}.glb"} if has_object else {}
            media |= {"turntable": f"turntables/{stem}.mp4"} if has_turntable else {}
            rows.append(row(text, strip=f"strips/{stem}.png", **media))
        folders.append(evaluation(run(place / str(number), rows) / "evaluation", rows, name=name))
        for one in rows:
            if one.object:
                path = folders[-1] / one.object
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(glbs[number])
                path.with_name(f"{path.name}.js").write_text("alert('not ours')")
            if one.turntable:
                save_video(folders[-1] / one.turntable, torch.rand(6, 32, 32, 3), 12.0)
    (place / "page").mkdir()
    write_comparison(place / "page", compare(read_evaluations(folders)))
    for one in range(len(RUNS)):
        shutil.rmtree(place / str(one))
    return place / "page"


def opened_by(html: str) -> dict[str, dict[str, list[str]]]:
    """By prompt, the labels of the objects and turntables that its buttons open; their files by label."""
    found: dict[str, dict[str, list[str]]] = {}
    prompt = ""
    for tag, attributes in parse(html).elements:
        if attributes.get("class") == "prompt":
            prompt = attributes["aria-label"]
        for kind in ("data-frame", "data-videos"):
            if tag == "button" and kind in attributes:
                query = urlsplit(attributes[kind]).fragment if kind == "data-frame" else attributes[kind]
                found.setdefault(prompt, {})[kind] = parse_qsl(query, keep_blank_values=True)
    return found


def test_a_button_opens_those_of_all_runs_that_have_one(folder, glbs):
    opened = opened_by((folder / "index.html").read_text(encoding="utf-8"))
    for kind, column in (("data-frame", 0), ("data-videos", 1)):
        for text in dict.fromkeys(text for prompts in RUNS.values() for text in prompts):
            expected = [name for name, prompts in RUNS.items() if prompts.get(text, (False, False))[column]]
            pairs = opened.get(text, {}).get(kind, [])
            assert [label for _, label in pairs] == expected
            for path, label in pairs:
                if kind == "data-videos":
                    assert (folder / path).read_bytes()[4:8] == b"ftyp"
                    continue
                assert (folder / "objects" / path).read_bytes() == glbs[list(RUNS).index(label)]
    # Nothing that runs comes from an evaluation: the scripts hold the objects, and are written here.
    scripts = list(folder.rglob("*.glb.js"))
    assert len(scripts) == 3
    for path in scripts:
        data = base64.b64encode(next((folder / "objects").glob(path.stem)).read_bytes()).decode()
        assert path.read_text() == f'showObject("{data}");\n'
    # A later comparison may replace all of it, and the index lists the media.
    assert foreign_files(folder, COMPARE) == []
    entries = json.loads((folder / "index.json").read_text())
    assert sum("object" in one for one in entries) == 3 and sum("turntable" in one for one in entries) == 6
    assert all((folder / one[key]).is_file() for one in entries for key in ("strip", "object") if key in one)


@pytest.mark.parametrize("kind", ["outside", "link", "pipe", "folder", "missing", "not a GLB", "a page"])
def test_what_is_not_an_object_inside_the_evaluation_is_left_out(tmp_path, glbs, kind):
    glb = glbs[0]
    (tmp_path / "secret.glb").write_bytes(glb)
    name = {"outside": "../../secret.glb", "a page": "objects/x.html"}.get(kind, "objects/x.glb")
    rows = [row("a cube", object=name, turntable=name.replace(".glb", ".mp4"))]
    folders = [run(tmp_path / "a", rows), run(tmp_path / "b", [row("a cube")])]
    path = tmp_path / "a/evaluation/objects/x.glb"
    path.parent.mkdir()
    match kind:
        case "link":
            path.symlink_to(tmp_path / "secret.glb")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "not a GLB":
            path.write_bytes(b"<html>" + glb)
        case "a page":
            path.with_suffix(".html").write_bytes(glb)
    assert not find_media(tmp_path / "a/evaluation", name)
    (tmp_path / "page").mkdir()
    write_comparison(tmp_path / "page", compare(read_evaluations(folders)))
    html = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert 'class="view"' not in html and "frame-src" not in html
    assert not list((tmp_path / "page").rglob("*.glb*")) and not (tmp_path / "page/objects").exists()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_buttons_hold_any_label(text):
    for button, key in ((objects_button("o/", {"x-1.glb": text, "x-2.splat": ""}, text), "data-frame"),
                        (video_button({"v/x 1.mp4": text}, text), "data-videos")):  # fmt: skip
        ((tag, attributes),) = parse(button).elements
        assert tag == "button" and len(attributes) == 5 and attributes["class"] == "view"
        names = dict(parse_qsl(attributes[key].rpartition("#")[2], keep_blank_values=True))
        assert list(names) == (["x-1.glb", "x-2.splat"] if key == "data-frame" else ["v/x 1.mp4"])
        assert {one_line(text, 60), ""} >= set(names.values()) and one_line(text, 60) in names.values()


# ---- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    yield from launched()


CAMERAS = """() => [...document.querySelectorAll("model-viewer")].map((viewer) => {
  const { theta, phi, radius } = viewer.getCameraOrbit();
  return [theta, phi, radius, viewer.getFieldOfView()];
})"""


@contextmanager
def opened(browser, origin: str, allowed: str = "nothing"):
    """Context: the page's tab with the objects of "a cube" open, and its frame; fails on other problems."""
    tab, problems = browser.new_page(viewport={"width": 390, "height": 900}), []
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    ours = (origin, "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
    tab.goto(f"{origin}index.html")
    card = tab.locator(".prompt", has_text="a cube")
    card.locator("button.view", has_text="3D").click()
    frame = tab.frame_locator("iframe.object")
    frame.locator("body[data-state]").wait_for(state="attached", timeout=60_000)
    assert frame.locator("figcaption").all_inner_texts() == ["first", "<b>second</b>"]
    yield tab, card, frame
    tab.close()
    assert [one for one in problems if allowed not in one] == []


def test_objects_open_and_turn_together_from_disk(browser, folder, tmp_path):
    """After the folder was moved, without a request outside; what was open closes."""
    shutil.copytree(folder, tmp_path / "moved")
    with opened(browser, f"{(tmp_path / 'moved').as_uri()}/") as (tab, card, frame):
        assert frame.locator("body").get_attribute("data-state") == "loaded"
        together = f"() => (([a, b]) => a.every((x, i) => Math.abs(x - b[i]) < 1e-3))(({CAMERAS})())"
        tab.frames[-1].wait_for_function(together, timeout=30_000)
        before = tab.frames[-1].evaluate(CAMERAS)
        frame.locator("model-viewer").nth(1).locator(".userInput").press("ArrowRight")
        tab.frames[-1].wait_for_function(f"([a]) => ({CAMERAS})()[0][0] !== a[0]", arg=before, timeout=30_000)
        tab.frames[-1].wait_for_function(together, timeout=30_000)
        card.locator("button.view", has_text="Turntable").click()
        assert tab.locator("iframe").count() == 0 and card.locator(".videos video").count() == 2
        assert card.locator(".videos figcaption").all_inner_texts() == ["first", "<b>second</b>"]
        assert tab.locator("button[aria-pressed=true]").count() == 1
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
        tab.keyboard.press("Escape")
        assert tab.locator("video").count() == 0 and tab.locator("button[aria-pressed=true]").count() == 0
        assert card.locator("button.view").all_inner_texts() == ["3D", "Turntable"]


def test_a_served_object_that_is_missing_leaves_the_others(browser, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (missing,) = (tmp_path / "copy/objects").glob("*cube*-1.glb")
    missing.unlink()
    with FolderServer(tmp_path / "copy") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with opened(browser, server.url, allowed="404") as (tab, _, frame):
            assert frame.locator("body").get_attribute("data-state") == "failed"
            assert frame.locator("figure:first-of-type .problem").is_visible()
            loaded = "() => [...document.querySelectorAll('model-viewer')].map((viewer) => viewer.loaded)"
            assert tab.frames[-1].evaluate(loaded) == [False, True]
        server.shutdown()
