"""Splats on the page of generate: one button for splats and mesh, from disk and from `amortized view`."""

from __future__ import annotations

import threading

import pytest

from amortized.assets import AssetConfig, Source, make_asset, save_asset
from amortized.commands.view import FolderServer
from amortized.gallery import write_page
from amortized.splats import write_splat_file, write_splat_ply
from tests.assets.shapes import CPU, Shape, box
from tests.gallery.folders import entry
from tests.pages.chromium import launched
from tests.pages.html import parse
from tests.splats.made import filled_ball

OBJECTS = {"both_0": ("glb", "splat", "splat-ply"), "ply_0": ("splat-ply",), "one_0": ("splat",)}


@pytest.fixture(scope="module")
def browser():
    yield from launched()


def entries() -> list[dict]:
    """The objects' entries; `one_0` was trained without antialiasing."""
    made = [entry(name, f"prompt of {name}", *formats) for name, formats in OBJECTS.items()]
    for one in made:
        for format, record in one["files"].items():
            record["file"] = f"{one['name']}.{'splats.ply' if format == 'splat-ply' else format}"
            record["settings"] = {"antialias": one["name"] != "one_0"}
    return made


@pytest.fixture
def folder(tmp_path):
    made = make_asset(Shape(box), AssetConfig(resolution=32, faces=500, texture=64), Source(prompt="a"), CPU)
    save_asset(made, tmp_path / "both_0", "glb")
    for name in OBJECTS:
        write_splat_file(tmp_path / f"{name}.splat", filled_ball(0.4, (0.9, 0.3, 0.1)))
        write_splat_ply(tmp_path / f"{name}.splats.ply", filled_ball(0.4, (0.9, 0.3, 0.1)))
    assert write_page(tmp_path, entries()) == ""
    return tmp_path


def test_a_button_opens_the_mesh_and_one_file_of_splats(folder):
    elements = parse((folder / "index.html").read_text(encoding="utf-8")).elements
    frames = [attributes["data-frame"] for _, attributes in elements if "data-frame" in attributes]
    assert frames == [
        "viewer/viewer.html#both_0.glb=mesh&both_0.splat=splats",
        "viewer/viewer.html#ply_0.splats.ply=",
        "viewer/viewer.html#one_0.splat=&classic=one_0.splat",
    ]
    shown = {"both_0.glb.js", "both_0.splat.js", "ply_0.splats.ply.js", "one_0.splat.js"}
    assert {path.name for path in (folder / "viewer").glob("*_0*.js")} == shown
    # The scripts of files that are gone go with them.
    for path in folder.glob("*_0.spl*"):
        path.unlink()
    assert write_page(folder, entries()) == ""
    assert {path.name for path in (folder / "viewer").glob("*_0*.js")} == {"both_0.glb.js"}


def test_splats_and_mesh_open_side_by_side_and_turn_together(browser, folder):
    """Served; tests/pages has both from disk."""
    with FolderServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab, problems = browser.new_page(viewport={"width": 900, "height": 900}), []
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        ours = (server.url, "data:", "blob:")
        tab.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
        tab.goto(f"{server.url}index.html")
        for number, labels in enumerate((["mesh", "splats"], [""], [""])):
            tab.locator("button.view").nth(number).click()
            frame = tab.frame_locator("iframe.object")
            frame.locator("body[data-state]").wait_for(state="attached", timeout=60_000)
            assert frame.locator("body").get_attribute("data-state") == "loaded"
            assert frame.locator("figcaption").all_inner_texts() == labels
            # Splats alone do not load the library of meshes.
            assert frame.locator("script[src='model-viewer.js']").count() == (number == 0)
            if number == 0:
                frame.locator("canvas[role=application]").press("ArrowRight")
                tab.frames[-1].wait_for_function(TURNED, timeout=30_000)
        tab.close()
        server.shutdown()
    assert problems == []


TURNED = """() => {
  const mesh = document.querySelector("model-viewer").getCameraOrbit();
  const { orbit } = document.querySelector("canvas").view;
  return Math.abs(mesh.theta - orbit.theta) < 1e-3 && Math.abs(mesh.radius - orbit.radius) < 1e-3
    && Math.abs(orbit.theta - Math.PI / 12) < 1e-6;
}"""
