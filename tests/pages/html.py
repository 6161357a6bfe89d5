"""Hostile texts, and the elements of a page as an HTML parser finds them."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</title></style></head><body onload=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "<!-- --!> <![CDATA[ ]]> <?php ?>",
    "../../../../etc/passwd",
    "&lt;script&gt; &#60;b&#62; &amp;amp; &notanentity;",
    "a\0b\x1b[31m\x08\x7f\x85",
    "\u202eevil\u202d \u2066x\u2069 \u200f",
    "line\u2028separator\u2029paragraph\r\nreturn\ttab",
    "javascript:alert(1)",
    "x" * 10_000,
    "\U0001f600" * 5000,
    "half \ud800 character \udfff",
    "{{7*7}} ${7*7} %s {0}",
]
VOID = {"meta", "link", "img", "input", "br"}


class Checker(HTMLParser):
    """Elements, attributes and texts of a page; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"an attribute of <{tag}> appears twice: {names}"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))


def parse(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def structure(text: str) -> list[tuple[str, frozenset[str]]]:
    """The elements with the names of their attributes."""
    return [(tag, frozenset(attributes)) for tag, attributes in parse(text).elements]
