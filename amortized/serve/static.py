"""The pages of a service: a closed table of files inside the package, with the policy of each.

The page at / is `page/index.html`: plain HTML, style sheets and modules, without a build step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from starlette.responses import Response

from amortized.pages import VIEWER_FILES
from amortized.serve.problems import Problem

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
# Of the viewer, whose own policy in its HTML is the same or stricter; models come from this service only.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; media-src 'self' blob:; "
    "worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
# Of the front page, which is wholly ours: no inline script or style, no eval, no HTML from text.
FRONT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
MODULES = ("address", "api", "files", "gallery", "knowledge", "main", "stage", "turntable")
# The path below /static/: the file in the package.
FILES = {name: f"pages/{name}" for name in VIEWER_FILES} | {"base.css": "pages/base.css"}
FILES |= {name: f"serve/page/{name}" for name in ("page.css", *(f"{module}.js" for module in MODULES))}


@dataclass(frozen=True)
class Static:
    """The contents and type of a file."""

    data: bytes
    type: str


def static_response(name: str) -> Response:
    """A file of the table. Raises Problem for any other name."""
    if name not in FILES:
        raise Problem("not_found")
    file = _read(name)
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return Response(file.data, headers=headers, media_type=file.type)


@cache
def _read(name: str) -> Static:
    data = resources.files("amortized").joinpath(FILES[name]).read_bytes()
    return Static(data, TYPES[name[name.rindex(".") :]])


def front_page() -> Response:
    """The page at /."""
    headers = {"Content-Security-Policy": FRONT_POLICY, "Cache-Control": "no-cache"}
    return Response(_front(), headers=headers, media_type="text/html; charset=utf-8")


@cache
def _front() -> bytes:
    return resources.files("amortized").joinpath("serve/page/index.html").read_bytes()
