"""The frame of a page: its head with the security policy, and its sections.

The policy admits the page's own style sheet and script by digest, pictures and videos on the same disk or
server, and nothing else: no request leaves it, no other script runs, and `eval` is blocked. Style sheet and
script are inside the page, since a policy cannot admit single files on disk.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from amortized.pages.markup import text

FRAMES = "frame-src 'self' file:; "


@cache
def asset(path: str) -> str:
    """The text of a style sheet or script, e.g. pages/base.css. No data is ever formatted into it."""
    return resources.files("amortized").joinpath(path).read_text(encoding="utf-8")


def document(
    *,
    title: str,
    body: str,
    style: str = "",
    script: str = "",
    kind: str = "",
    frames: bool = False,
    reload_s: int | None = None,
) -> str:
    """A page as text.

    Args:
        title, body: HTML; values in them are escaped.
        style: rules after those that all pages share.
        script: the page's only script; empty: no script may run.
        kind: names the writer, see `is_page_of`.
        frames: the page may show other pages of its folder in frames: objects in 3D.
        reload_s: seconds after which the browser loads the page again; None: never.
    """
    style = asset("pages/base.css") + style
    scripts = f"'{digest(script)}'" if script else "'none'"
    policy = (
        f"default-src 'none'; img-src 'self' file: data:; media-src 'self' file:; {FRAMES if frames else ''}"
        # Browsers without style-src-elem fall back to style-src, which the style attributes need anyway.
        f"style-src 'unsafe-inline'; style-src-elem '{digest(style)}'; "
        f"script-src {scripts}; base-uri 'none'; form-action 'none'"
    )
    reload = f'<meta http-equiv="refresh" content="{reload_s}">\n' if reload_s is not None else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{_generator(kind)}
<meta http-equiv="Content-Security-Policy" content="{text(policy)}">
{reload}<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
{body}
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def section(key: str, title: str, body: str, beside: str = "") -> str:
    """A section with its heading, to which `#key` leads; `beside` stands right of the heading."""
    heading = f'<h2 id="{key}">{title}</h2>'
    heading = f'<div class="bar">{heading}{beside}</div>' if beside else heading
    return f'<section aria-labelledby="{key}">{heading}{body}</section>'


def navigation(parts: dict[str, str]) -> str:
    """Links to the sections of a page, by key."""
    links = "".join(f'<a href="#{key}">{label}</a>' for key, label in parts.items())
    return f'<nav aria-label="Sections">{links}</nav>'


def is_page_of(start: bytes, kind: str) -> bool:
    """Whether the first kilobyte of a file is that of a page that `document` wrote with this `kind`."""
    return _generator(kind).encode() in start


def _generator(kind: str) -> str:
    return f'<meta name="generator" content="amortized3d {text(kind)}">'


def digest(code: str) -> str:
    """A script's or style's source expression in a policy, without its quotes."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
