"""Splats in 3D: the viewer's picture is the renderer's, and the keyboard, the pointer and errors work."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amortized.cameras import orbit
from amortized.pages import frame_address, write_script, write_viewer
from amortized.rendering import render_splats
from amortized.splats import scene_of, write_splat_file, write_splat_ply
from amortized.types import SplatScene
from tests.pages.chromium import launched
from tests.splats.made import cloud

SIZE, GRAY, FOVY, DISTANCE = 96, 0.5, 38.0, 2.6
PIXEL = 2 * DISTANCE * math.tan(math.radians(FOVY / 2)) / SIZE  # at the center
WRITERS = {"splat": write_splat_file, "splats.ply": write_splat_ply}
VIEW = 'document.querySelector("canvas").view'
# Drawing and reading happen in one task: the picture is gone after it.
DRAW = f"""([theta, phi, radius, fov]) => {{
  const view = {VIEW};
  Object.assign(view, {{ target: [0, 0, 0], fov, limits: [0, 99] }});
  view.place({{ theta, phi, radius }});
  view.draw();
  return view.canvas.toDataURL();
}}"""


@pytest.fixture(scope="module")
def browser():
    yield from launched()


def scenes() -> dict[str, SplatScene]:
    """Splats from needles to clouds, from faint to opaque; and splats of about a pixel."""
    large, fine = ({name: value.float() for name, value in cloud(n, seed=n).items()} for n in (300, 3000))
    large["log_scales"].clamp_(max=math.log(0.3))
    fine["log_scales"] += math.log(0.3 * PIXEL) - fine["log_scales"].mean()
    fine["logits"] += 3
    for parameters in (large, fine):
        parameters["colors"].clamp_(-1.7, 1.7)  # files hold colors in [0, 1]
    return {"large": scene_of(large, 1.0), "fine": scene_of(fine, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splats")
    write_viewer(folder)
    for name, scene in scenes().items():
        for kind, write in WRITERS.items():
            write(folder / f"{name}.{kind}", scene)
            assert write_script(folder / f"{name}.{kind}") is not None
    return folder


def opened(browser, folder: Path, name: str, classic: bool = False, **options):
    """A tab with a file of the folder from disk, and the list of what went wrong in it."""
    options = {"viewport": {"width": SIZE, "height": SIZE}, **options}
    tab, problems = browser.new_page(**options), []
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    ours = (folder.as_uri(), "data:")
    tab.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
    tab.goto(f"{folder.as_uri()}/{frame_address('', {name: ''}, [name] if classic else [])}")
    tab.locator("body[data-state]").wait_for(state="attached", timeout=30_000)
    return tab, problems


def picture(tab, azimuth: float, elevation: float) -> np.ndarray:
    """The viewer's picture [H, W, 3] over gray, in [0, 1]."""
    camera = [math.radians(azimuth), math.radians(90 - elevation), DISTANCE, math.radians(FOVY)]
    data = base64.b64decode(tab.evaluate(DRAW, camera).partition(",")[2])
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), np.float64) / 255
    return rgba[..., :3] * rgba[..., 3:] + GRAY * (1 - rgba[..., 3:])


def rendered(scene: SplatScene, azimuth: float, elevation: float) -> np.ndarray:
    cameras = orbit(
        1, 1, elevation_deg=elevation, distance=DISTANCE, fovy_deg=FOVY, start_azimuth_deg=azimuth
    )
    background = torch.full((1, 1, 3), GRAY)
    image = render_splats(scene, cameras, SIZE, SIZE, background=background, training=False)
    return image.rgb[0, 0].clamp(0, 1).double().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(np.square(a - b).mean())


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", ["large", "fine"])
def test_the_viewer_draws_as_the_renderer_does(browser, folder, name, kind, antialias):
    scene = replace(scenes()[name], antialias=antialias)
    tab, problems = opened(browser, folder, f"{name}.{kind}", classic=not antialias)
    for azimuth, elevation in ((37, 20), (-110, -70)):
        image = picture(tab, azimuth, elevation)
        assert psnr(image, rendered(scene, azimuth, elevation)) > 48
        # Another camera, and the other kind of splats, differ visibly.
        assert psnr(image, rendered(scene, azimuth + 20, elevation)) < 35
        if name == "fine":
            assert psnr(image, rendered(replace(scene, antialias=not antialias), azimuth, elevation)) < 32
    tab.close()
    assert problems == []


def test_keys_pointer_and_wheel_turn_the_object_and_the_picture_follows_the_window(browser, folder):
    tab, problems = opened(browser, folder, "large.splat")
    canvas = tab.locator("canvas")
    assert "turn it with the pointer or the arrow keys" in canvas.get_attribute("aria-label")
    orbit = f"() => Object.values({VIEW}.orbit)"
    start = tab.evaluate(orbit)
    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.tagName") == "CANVAS"
    changes = {"ArrowRight": (1, 0, 0), "ArrowUp": (0, -1, 0), "+": (0, 0, -1), "PageDown": (0, 0, 1)}
    for key, signs in changes.items():
        before = tab.evaluate(orbit)
        tab.keyboard.press(key)
        assert np.sign(np.round(np.subtract(tab.evaluate(orbit), before), 9)).tolist() == list(signs)
    tab.mouse.move(30, 50)
    tab.mouse.down()
    tab.mouse.move(50, 50)
    tab.mouse.up()
    tab.mouse.move(90, 90)  # the button is up: nothing more happens
    assert tab.evaluate(orbit)[0] == pytest.approx(start[0] + math.pi / 12 - 2 * math.pi * 20 / SIZE)
    for notches, sign in ((-15, 1), (22, -1)):  # to the limits
        for _ in range(abs(notches)):
            tab.mouse.wheel(0, math.copysign(100, notches))
        tab.wait_for_timeout(100)
        assert (start[2] - tab.evaluate(orbit)[2]) * sign > 0.4 * start[2]
    tab.set_viewport_size({"width": 200, "height": 120})
    tab.wait_for_timeout(200)
    assert tab.evaluate(f"() => [{VIEW}.canvas.width, {VIEW}.canvas.height]") == [200, 120]
    tab.close()
    assert problems == []


def damage(data: bytes, kind: str) -> bytes:
    nan = np.float32("nan").tobytes()
    return {
        "empty": b"",
        "cut": data[:-1],
        "not finite": data[:-64] + nan + data[-60:],
        "markup": b"<script>alert(1)</script>",
        "ASCII": data.replace(b"binary_little_endian", b"ascii"),
        "huge count": data.replace(b"vertex 300", b"vertex 999999999"),
        "mesh": data.replace(b"float opacity", b"float opaque"),
    }[kind]


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("splat", kind) for kind in ("empty", "cut", "not finite")]
    + [("splats.ply", kind) for kind in ("cut", "not finite", "markup", "ASCII", "huge count", "mesh")],
)
def test_a_damaged_file_is_one_sentence(browser, folder, tmp_path, suffix, kind):
    write_viewer(tmp_path)
    (tmp_path / f"x.{suffix}").write_bytes(damage((folder / f"large.{suffix}").read_bytes(), kind))
    write_script(tmp_path / f"x.{suffix}")
    tab, problems = opened(browser, tmp_path, f"x.{suffix}")
    assert tab.locator("body").get_attribute("data-state") == "failed"
    assert "is damaged" in tab.locator(".problem").inner_text() and tab.locator("canvas").count() == 0
    tab.close()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_without_webgl_2_one_readable_sentence_says_so(browser, folder, scheme):
    context = browser.new_context(color_scheme=scheme)
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    tab = context.new_page()
    tab.goto(f"{folder.as_uri()}/{frame_address('', {'large.splat': ''})}")
    tab.locator("body[data-state=failed]").wait_for(state="attached", timeout=30_000)
    assert "this browser has no WebGL 2" in tab.locator(".problem").inner_text()
    light = tab.evaluate("() => getComputedStyle(document.querySelector('.problem')).color")
    assert light == ("rgb(255, 255, 255)" if scheme == "dark" else "rgb(0, 0, 0)")
    context.close()
