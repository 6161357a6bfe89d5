"""Any text as prompt: every format stays valid, holds the text as data, and names no file by it."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from amortized.assets import FORMATS, AssetError, Source, save_asset
from amortized.assets.conventions import LINE_LIMIT, clean, metadata, quoted
from tests.assets.meshes import HOSTILE, box, plain_asset, textured_asset
from tests.assets.readers import read_glb
from tests.assets.test_printing import read_3mf

SAFE = re.compile(r"[A-Za-z0-9._/\[\]-]+")
TEXTS = st.text(st.characters(codec=None), max_size=60)


def source_of(text: str) -> Source:
    return Source(prompt=text, seed=2**63, checkpoint=text, license=text)


@pytest.mark.parametrize("name", HOSTILE)
def test_glb_holds_the_text_as_json(name: str) -> None:
    data = FORMATS["glb"](textured_asset(source_of(HOSTILE[name])))
    tree, _ = read_glb(data)
    assert tree["asset"]["extras"].get("prompt", "") == clean(HOSTILE[name])
    assert tree["asset"]["extras"]["seed"] == str(2**63)
    harmless, _ = read_glb(FORMATS["glb"](textured_asset(source_of(""))))
    tree["asset"] = harmless["asset"]
    assert tree == harmless  # the text is nowhere else


@pytest.mark.parametrize("name", HOSTILE)
def test_3mf_holds_the_text_as_xml(name: str) -> None:
    harmless, hostile = (
        read_3mf(FORMATS["3mf"](textured_asset(source_of(text)))) for text in ("", HOSTILE[name])
    )
    assert hostile[0].get("Title", "") == clean(HOSTILE[name])
    assert hostile[0].get("LicenseTerms", "") == clean(HOSTILE[name])
    assert all(np.array_equal(a, b) for a, b in zip(harmless[1:], hostile[1:], strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_ply_and_obj_hold_the_text_in_one_comment(name: str, tmp_path: Path) -> None:
    source = source_of(HOSTILE[name])
    ply = FORMATS["ply"](plain_asset(box(), source))
    assert np.array_equal(trimesh.load(io.BytesIO(ply), file_type="ply", process=False).faces, box().faces)
    archive = zipfile.ZipFile(io.BytesIO(FORMATS["obj"](textured_asset(source))))
    (obj,) = [archive.read(name) for name in archive.namelist() if name.endswith(".obj")]
    heads = {
        "comment prompt ": ply[: ply.index(b"\nend_header\n")].decode("ascii").split("\n"),
        "# prompt ": [line for line in obj.decode("ascii").split("\n") if line.startswith("#")],
    }
    for start, lines in heads.items():
        assert all(line.isprintable() and len(line) < 500 for line in lines)
        found = [line.removeprefix(start) for line in lines if line.startswith(start)]
        text = clean(HOSTILE[name])
        assert len(found) == bool(text)
        if text:
            shown = json.loads(found[0])
            assert shown == text or text.startswith(shown.removesuffix("..."))
    plain = archive.namelist()
    assert plain == zipfile.ZipFile(io.BytesIO(FORMATS["obj"](textured_asset()))).namelist()


@pytest.mark.parametrize("name", HOSTILE)
def test_usdz_holds_the_text_as_a_string(name: str, tmp_path: Path) -> None:
    Usd = pytest.importorskip("pxr.Usd", reason="usd-core is not installed")
    path = save_asset(textured_asset(source_of(HOSTILE[name])), tmp_path / "a", "usdz")
    stage = Usd.Stage.Open(str(path))
    assert stage.GetRootLayer().customLayerData.get("prompt", "") == clean(HOSTILE[name])


@pytest.mark.parametrize("format", ["obj", "3mf", "usdz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_members_of_archives_have_plain_names(name: str, format: str) -> None:
    data = FORMATS[format](textured_asset(source_of(HOSTILE[name])))
    for member in zipfile.ZipFile(io.BytesIO(data)).namelist():
        assert SAFE.fullmatch(member) and ".." not in member and not member.startswith("/")


def test_clean_replaces_one_by_one_and_joins_pairs() -> None:
    assert clean("a\ud800 b\udfff\ud800") == "a\ufffd b\ufffd\ufffd"
    assert clean("\ud83d\ude00\0\ufeff") == "\U0001f600\ufffd\ufeff"
    assert clean("\ufeffx\r\ny\rz\tw") == "\ufeffx\ny\ufffdz\tw"


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_clean_text_fits_every_format(text: str) -> None:
    result = clean(text)
    result.encode("utf-8")
    assert clean(result) == result
    # What XML 1.0 allows, without the carriage return, which its readers turn into a line end.
    assert re.fullmatch(r"[\t\n\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]*", result)
    if text.isprintable():
        assert result == text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=1000))
def test_quoted_text_is_short_and_reads_back(text: str) -> None:
    line = quoted(text)
    assert len(line) <= LINE_LIMIT and line.isascii() and "\n" not in line
    shown = json.loads(line)
    assert shown == text or (shown.endswith("...") and text.startswith(shown[:-3]) and len(line) > 300)


def test_empty_metadata_is_left_out() -> None:
    assert metadata(Source(prompt="a")) == {"prompt": "a", "seed": "0"}


class Hidden:
    """A finder that makes a package appear not installed."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {self.module!r}", name=self.module)


@pytest.mark.parametrize(
    ("format", "module", "package"),
    [("stl", "manifold3d", "manifold3d"), ("3mf", "manifold3d", "manifold3d"), ("usdz", "pxr", "usd-core")],
)
def test_a_missing_library_is_one_sentence(
    format: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(module), *sys.meta_path])
    with pytest.raises(AssetError) as error:
        FORMATS[format](textured_asset())
    text = str(error.value)
    assert f"needs {package}, which is not installed: pip install {package}" in text and "\n" not in text
    assert f'extra "{"usdz" if format == "usdz" else "assets"}"' in text
    for other in ("glb", "ply", "obj"):
        assert FORMATS[other](textured_asset())
