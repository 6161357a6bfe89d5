"""The pages of a service: a closed table of files inside the package, with the policy of each.

The front page is plain for now; its script and style sheet go into `FILES` like those of the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from starlette.responses import Response

from amortized.pages import VIEWER_FILES, document
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
# The front page has a policy in its HTML, which admits its own style sheet by digest; this one is wider.
FRONT_POLICY = POLICY.replace("frame-ancestors 'self'", "frame-src 'self'; frame-ancestors 'none'")
FILES = {name: f"pages/{name}" for name in VIEWER_FILES}  # the path below /static/: the file in the package


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
    body = (
        "<main><h1>Amortized3D</h1>"
        "<p>This service turns text into 3D objects.</p>"
        '<p><a href="/openapi.json">The description of its API</a> (OpenAPI).</p></main>'
    )
    page = document(title="Amortized3D", body=body)
    return Response(
        page, headers={"Content-Security-Policy": FRONT_POLICY}, media_type="text/html; charset=utf-8"
    )
