"""Show the pages of a folder in a browser: objects in 3D, reports, runs.

  amortized view generated
  amortized view outputs/quickstart

Serves the files of that folder alone, to this machine alone, at an address with a random port and token,
until Ctrl-C. No folder is listed. Pages work from disk as well, but there a browser shows only small
objects in 3D.
"""

from __future__ import annotations

import argparse
import os
import secrets
import stat
import webbrowser
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from amortized.arguments import path, whole
from amortized.pages import asset, digest

# What a browser may show; anything else, HTML in disguise included, is offered as a download.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".glb": "model/gltf-binary",
}
# The digests of the scripts inside our pages, which their own policies admit too.
OURS = ("pages/cards.js", "comparison/compare.js")
SCRIPTS = " ".join(f"'{digest(asset(script) + asset('pages/viewing.js'))}'" for script in OURS)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        f"default-src 'self'; script-src 'self' 'wasm-unsafe-eval' {SCRIPTS}; "
        "img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; media-src 'self'; worker-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
}
PIECE = 2**18  # bytes sent at once


class FolderServer(ThreadingHTTPServer):
    """Serves the regular files of one folder on the loopback interface, below a secret path."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        """`port` 0 chooses a free one. Raises OSError if it is taken."""
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.token = folder.resolve(strict=True), secrets.token_urlsafe(16)

    @property
    def url(self) -> str:
        """The address of the folder, with its token."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that closes a connection is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: FolderServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Amortized3D", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        # 1. Who asks: a page of another site can name this port, but neither this host nor the token.
        hosts = {f"{name}:{self.server.server_address[1]}" for name in ("127.0.0.1", "localhost")}
        token, _, name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        if self.headers.get("Host") not in hosts or not secrets.compare_digest(
            token.encode("utf-8", "surrogatepass"), self.server.token.encode()
        ):
            return self._refuse(HTTPStatus.FORBIDDEN)
        # 2. What: a regular file of the folder.
        name = f"{name}index.html" if not name or name.endswith("/") else name
        file = open_inside(self.server.folder, name)
        if file is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        # 3. Which part: videos are sought in.
        with file:
            size = os.fstat(file.fileno()).st_size
            first, last = byte_range(self.headers.get("Range"), size)
            if first >= size > 0:
                return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            whole_file = (first, last) == (0, size - 1)
            self.send_response(HTTPStatus.OK if whole_file else HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Type", TYPES.get(Path(name).suffix.lower(), "application/octet-stream"))
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if not whole_file:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self._end_headers()
            if with_body:
                self._send(file, first, last - first + 1)

    def _send(self, file: BinaryIO, first: int, length: int) -> None:
        file.seek(first)
        while length > 0 and (data := file.read(min(PIECE, length))):
            self.wfile.write(data)
            length -= len(data)
        if length:  # the file shrank: its announced length is wrong
            self.close_connection = True

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self._end_headers()

    def _end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def open_inside(folder: Path, name: str) -> BinaryIO | None:
    """Open a regular file below a resolved folder; None for anything else, links that lead out included."""
    try:
        file = (folder / name).resolve(strict=True)
        if not file.is_relative_to(folder) or name.startswith("/") or "\\" in name:
            return None
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError, RuntimeError):  # missing, unreadable, a NUL, a loop of links
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """The first and last byte of a Range header with one range; all bytes for any other header."""
    unit, _, text = (header or "").partition("=")
    first, dash, last = text.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (first or last) or not f"{first}{last}".isdecimal():
        return 0, size - 1
    if not first:
        return max(0, size - int(last)), size - 1
    end = min(int(last), size - 1) if last else size - 1
    return (int(first), end) if int(first) <= end or int(first) >= size else (0, size - 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, help="a folder with a page: of generate, a run, an evaluation")
    parser.add_argument("--port", type=whole(0, 65535), default=0, help="0: a free one (default)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C; returns the exit status."""
    from amortized.untrusted import short

    page = next((page for page in pages_of(args.folder) if page.is_file()), None)
    if page is None and (args.folder / "index.json").is_file():
        raise ValueError(
            f"{short(args.folder)} has an index.json, but no page: run its generate command again, which "
            "adds the page and skips the objects that are complete"
        )
    if page is None:
        raise ValueError(
            f"{short(args.folder)} has no page to show: name a run, an evaluation, or the output of generate"
        )
    with FolderServer(args.folder, args.port) as server:
        address = server.url + ("" if page.parent == args.folder else f"{page.parent.name}/")
        print(f"{address}\npress Ctrl-C to stop", flush=True)
        if not args.no_browser:
            webbrowser.open_new_tab(address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def pages_of(folder: Path) -> list[Path]:
    """The places for the page of a folder, the best first."""
    return [folder / "index.html", folder / "evaluation/index.html"]
