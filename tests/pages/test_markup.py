"""Text that an HTML parser reads back as it was, in an element and in an attribute, whatever it holds."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.pages import block, document, link, pairs, text
from amortized.pages.markup import UNSAFE, one_line, short_number
from amortized.pages.skeleton import is_page_of
from tests.pages.html import HOSTILE, parse, structure

ANY_TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), max_size=300))


@given(ANY_TEXT, st.integers(2, 500))
def test_text_is_read_back_in_an_element_and_in_an_attribute(value, limit):
    escaped = text(value, limit)
    parsed = parse(f'<p title="{escaped}">{escaped}</p>')
    assert [tag for tag, _ in parsed.elements] == ["p"]
    shown = "".join(words for _, words in parsed.texts)
    assert shown == parsed.elements[0][1]["title"] == one_line(value, limit)
    assert len(shown) <= limit and "\n" not in shown and not UNSAFE.search(shown)
    shown.encode("utf-8")
    plain = " ".join(value.split())
    if plain.isprintable() and len(plain) <= limit:
        assert shown == plain


@given(ANY_TEXT, st.integers(2, 500))
def test_a_block_retains_its_lines(value, limit):
    parsed = parse(f"<pre>{block(value, limit)}</pre>")
    assert [tag for tag, _ in parsed.elements] == ["pre"]
    shown = "".join(words for _, words in parsed.texts)
    assert len(shown) <= limit and not UNSAFE.search(shown)
    if re.fullmatch(r"[ -~\n]*", value) and len(value) <= limit:
        assert shown == value.removesuffix("\n")


@given(ANY_TEXT)
def test_a_link_leads_to_a_file_and_runs_nothing(value):
    parsed = parse(f'<a href="{link(value)}">x</a>')
    ((_, attributes),) = parsed.elements
    assert re.fullmatch(r"[\w./~%-]*", attributes["href"], re.ASCII)


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_values_change_no_element_of_a_page(value):
    def page(words):
        return document(title=text(words), body=f"<dl>{pairs({words: words})}</dl>", kind=words)

    assert structure(page(value)) == structure(page("a cube"))


@pytest.mark.parametrize("script", ["", "document.title = 'run';\n"])
def test_the_policy_admits_the_style_and_script_of_the_page_and_no_other(script):
    page = document(title="t", body="<p>text</p>", style="p { color: red; }\n", script=script, kind="test")
    (policy,) = [
        attributes["content"]
        for tag, attributes in parse(page).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules

    def digest(tag):
        (code,) = re.findall(f"(?s)<{tag}>(.*?)</{tag}>", page)
        return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"

    assert rules["style-src-elem"] == digest("style")
    assert rules["script-src"] == (digest("script") if script else "'none'")
    assert "unsafe-eval" not in policy and "http:" not in policy and "https:" not in policy


def test_only_the_pages_of_a_writer_are_recognized():
    page = document(title="t", body="", kind="run").encode()
    assert is_page_of(page[:1024], "run") and not is_page_of(page[:1024], "evaluation")
    assert not is_page_of(b"<!doctype html><title>mine</title>", "run")


@given(st.floats(-1e12, 1e12))
def test_short_numbers_are_within_half_a_percent(value):
    assert float(short_number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3, abs=1e-12)
