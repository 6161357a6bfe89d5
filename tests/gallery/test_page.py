"""The page of generate as HTML: hostile indexes change nothing but texts, and links lead to files."""

from __future__ import annotations

import json
import os
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.gallery import write_page
from amortized.gallery.cards import size_text
from amortized.gallery.objects import objects_of
from amortized.gallery.page import page
from amortized.pages.cards import MAX_CARDS
from amortized.pages.markup import TEXT_LIMIT
from tests.gallery.folders import entry, write_files
from tests.pages.html import HOSTILE, parse, structure

ALL = ("png", "mp4", "webp", "glb", "stl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_files(folder, [entry("a_0", "", *ALL), entry("b_0", "", "png"), entry("c_0", "", "glb")])
    return folder


def hostile(text: str) -> list[dict]:
    """Objects of all kinds with a text in every place that may hold one."""
    entries = [
        entry("a_0", text, *ALL, model=text),
        entry("b_0", text, "png", prompts=[text, text + "b"], model="m"),
        entry("c_0", text, "glb", model="m"),
    ]
    del entries[1]["prompt"]
    for made in entries:
        for record in made["files"].values():
            record["settings"] = record["settings"] | {"license": text, "camera": text, text or "key": text}
    return entries


def page_of(folder, entries) -> str:
    return page(folder, objects_of(folder, entries), {"a_0.glb"})


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_change_no_element_and_are_bounded(folder, text):
    html = page_of(folder, hostile(text))
    assert structure(html) == structure(page_of(folder, hostile("a cube")))
    html.encode("utf-8")
    assert not any(
        ord(c) < 32 and c != "\n" or "\u202a" <= c <= "\u202e" or c in "\u2028\u2029\x7f" for c in html
    )
    parsed = parse(html)
    shown = [words for tag, words in parsed.texts if tag not in ("style", "script")]
    assert max(map(len, shown)) <= TEXT_LIMIT + 20


def test_links_lead_to_files_and_every_file_is_linked(folder):
    parsed = parse(page_of(folder, hostile("a cube")))
    targets = {attributes.get("id") for _, attributes in parsed.elements}
    linked = set()
    for _, attributes in parsed.elements:
        for name in ("src", "href", "data-src", "data-poster"):
            address = unquote(attributes.get(name) or "data:")
            if address.startswith("#"):
                assert address[1:] in targets
            elif not address.startswith("data:"):
                linked.add(address)
    assert linked - {"index.json", "viewer/viewer.html#a_0.glb=", "viewer/viewer.html#c_0.glb="} == set(
        os.listdir(folder)
    )


def test_pictures_have_texts_and_sizes(folder):
    for tag, attributes in parse(page_of(folder, hostile("a cube"))).elements:
        if tag == "img":
            assert attributes["alt"] and attributes["loading"] == "lazy" and attributes["width"]
        assert tag != "video" or (attributes["aria-label"] and "src" not in attributes)
        assert tag != "button" or attributes["type"] == "button"


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "link.png", "sub/a.png", "pipe", "", ".", "no.png"]
)
def test_only_regular_files_of_the_folder_are_linked(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "made"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a.png").write_bytes(b"")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe")
    assert objects_of(folder, [{"name": "a", "prompt": "a", "files": {"png": {"file": name}}}]) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["a_0.png", "a_0.glb", "b_0.png", "c_0.glb"])
record = st.fixed_dictionaries(
    {},
    optional={
        "file": names | values,
        "model": values,
        "settings": values
        | st.dictionaries(st.sampled_from(["size", "show", "views", "background", "license"]), values),
    },
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a_0", "b_0"]) | values,
        "prompt": st.text(max_size=9) | values,
        "prompts": st.lists(st.text(max_size=9)) | values,
        "seed": values,
        "files": st.dictionaries(st.sampled_from(["png", "mp4", "webp", "glb", "<b>"]), record | values)
        | values,
    },
)


@given(st.lists(entries, max_size=4))
def test_any_index_makes_a_page(folder, made):
    html = page_of(folder, made)
    html.encode("utf-8")
    parse(html)


def test_a_large_folder_shows_its_last_objects(tmp_path):
    (tmp_path / "a.stl").write_bytes(b"")
    many = [entry("a", f"p{i}", "stl") | {"name": f"n{i}"} for i in range(MAX_CARDS + 5)]
    html = page_of(tmp_path, many)
    assert html.count('<article class="card"') == MAX_CARDS
    assert f"The last {MAX_CARDS:,} of {MAX_CARDS + 5:,} objects" in html
    assert "<bdi>p4</bdi>" not in html and f"<bdi>p{MAX_CARDS + 4}</bdi>" in html
    assert f"<b>{MAX_CARDS + 5:,} objects</b>" in html  # the counts are of all


def test_each_object_names_its_model_settings_and_license(folder):
    made = [entry("a_0", "one", *ALL), entry("b_0", "two", "png", model="other 1")]
    parsed = parse(page_of(folder, made))
    facts = [words for tag, words in parsed.texts if tag in ("dd", "a") or "step_4 abc" in words]
    for words in ("step_4 abc", "other 1", "CC0-1.0", "Settings 1", "Settings 2"):
        assert words in facts
    # Both tables list all settings of all formats.
    cells = [words for tag, words in parsed.texts if tag in ("th", "td")]
    assert {"camera", "size", "views", "frames", "faces", "size (m)", "turntable", "500"} <= set(cells)


def test_an_index_of_an_earlier_version_is_shown(folder):
    from amortized.commands.generated import read_index

    old = {"prompt": "a", "seed": 0, "slug": "a", "strip": "a_0.png", "turntable": "a_0.mp4"}
    (folder / "index.json").write_text(json.dumps([old]))
    assert write_page(folder, read_index(folder).values()) == ""
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert 'data-src="a_0.mp4"' in html and 'src="a_0.png"' in html
    for name in ("index.html", "index.json"):
        (folder / name).unlink()


@given(st.integers(0, 10**15 - 10**12))
def test_sizes_in_words_are_the_size(size):
    amount, unit = size_text(size).split()
    unit_bytes = 1000 ** ("B", "kB", "MB", "GB", "TB").index(unit)
    assert abs(float(amount) * unit_bytes - size) <= 0.051 * size + (unit == "kB") * 500
    assert len(amount) <= 3


def test_settings_nested_beyond_what_python_prints_are_left_out(folder):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    made = entry("a_0", "a", "png")
    made["files"]["png"]["settings"] = {"show": deep, "camera": {"deep": deep}, "size": 16}
    assert "Settings 1" in page_of(folder, [made])
