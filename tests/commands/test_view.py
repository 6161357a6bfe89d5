"""The server of `amortized view`: this folder's files, to who knows the token, and nothing else."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.commands.view import HEADERS, FolderServer, byte_range, open_inside
from amortized.comparison import page as comparison
from amortized.evaluation import page as evaluation
from amortized.gallery import page as gallery
from amortized.pages import digest

ROOT = Path(__file__).resolve().parents[2]
VIDEO = bytes(range(256)) * 3000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret")
    folder = tmp_path_factory.mktemp("pages")
    (folder / "index.html").write_text("<p>front")
    (folder / "evaluation").mkdir()
    (folder / "evaluation/index.html").write_text("<p>report")
    (folder / "a b #1.png").write_bytes(b"png")
    (folder / "film.mp4").write_bytes(VIDEO)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "page.svgz").write_bytes(b"unknown")
    (folder / "out.txt").symlink_to(outside / "secret.txt")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "folder").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    with FolderServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, *, method="GET", token=None, host=None, **headers):
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    path = f"/{server.token if token is None else token}/{path}"
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": host or f"127.0.0.1:{port}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("", b"<p>front", "text/html; charset=utf-8"),
        ("evaluation/", b"<p>report", "text/html; charset=utf-8"),
        ("a%20b%20%231.png?x=1", b"png", "image/png"),
        ("film.mp4", VIDEO, "video/mp4"),
        ("empty.txt", b"", "text/plain; charset=utf-8"),
        ("page.svgz", b"unknown", "application/octet-stream"),
    ],
)
def test_files_of_the_folder(server, path, body, kind):
    answer, found = ask(server, path)
    assert (answer.status, found, answer.headers["Content-Type"]) == (200, body, kind)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe-eval" not in answer.headers["Content-Security-Policy"].replace("wasm-unsafe-eval", "")
    head, nothing = ask(server, path, method="HEAD")
    assert head.status == 200 and nothing == b"" and head.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize(
    "path",
    [
        "../outside0/secret.txt",
        "%2e%2e/outside0/secret.txt",
        "..%2foutside0/secret.txt",
        "out.txt",
        "loop",
        "pipe",
    ]
    + [
        "folder/secret.txt",
        "evaluation",
        "missing",
        "%00",
        "//etc/passwd",
        "/etc/passwd",
        "..%5c..%5cx",
        "a" * 5000,
    ],
)
def test_nothing_else(server, path):
    answer, body = ask(server, path)
    assert (answer.status, body) == (404, b"")


@pytest.mark.parametrize("token", ["", "x", "%2e", "index.html", "%fc"])
def test_nothing_without_the_token(server, token):
    answer, body = ask(server, "film.mp4", token=token)
    assert (answer.status, body) == (403, b"")


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1", "127.0.0.1:1", "[::1]:80"])
def test_nothing_under_another_name(server, host):
    """Else a page of another site could read the folder through a name that it points here."""
    assert ask(server, "film.mp4", host=host)[0].status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_reading_only(server, method):
    assert ask(server, "film.mp4", method=method)[0].status == 501


@pytest.mark.parametrize(
    "text", ["bytes=0-0", "bytes=100-", "bytes=-5", "bytes=767990-999999999", "bytes=10-20", "bytes=-9999999"]
)
def test_a_range_is_that_part(server, text):
    answer, body = ask(server, "film.mp4", Range=text)
    first, _, last = text.removeprefix("bytes=").partition("-")
    expected = VIDEO[int(first) : int(last) + 1 if last else None] if first else VIDEO[-int(last) :]
    assert body == expected and answer.status == (200 if len(body) == len(VIDEO) else 206)
    if answer.status == 206:
        start = int(first) if first else len(VIDEO) - len(body)
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{len(VIDEO)}"


def test_a_range_past_the_end_is_refused(server):
    assert ask(server, "film.mp4", Range="bytes=99999999-")[0].status == 416


@given(st.text(max_size=20) | st.from_regex(r"bytes ?= ?[0-9]{0,20}-[0-9]{0,20}", fullmatch=True))
def test_any_range_lies_in_the_file(text):
    first, last = byte_range(text, 1000)
    assert 0 <= first and last <= 999 and (first <= last + 1 or first >= 1000)


@given(st.text(max_size=30))
def test_any_name_opens_files_of_the_folder_only(server, name):
    file = open_inside(server.folder, name)
    if file is not None:
        with file:
            assert Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).is_relative_to(server.folder)


def test_the_command_prints_its_address_and_ends_with_ctrl_c(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/index.html").write_text("report")
    command = [sys.executable, "-m", "amortized.commands.main", "view", str(tmp_path), "--no-browser"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    host, _, path = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", f"/{path}")
    assert connection.getresponse().read() == b"report"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")


def test_a_folder_without_a_page_is_one_sentence(run, tmp_path):
    failed = run("amortized", "view", str(tmp_path))
    assert failed.returncode == 2 and "has no page to show" in failed.stderr
    (tmp_path / "index.json").write_text("[]")  # of an earlier version of generate
    failed = run("amortized", "view", str(tmp_path))
    assert failed.returncode == 2 and "run its generate command again" in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("script", [evaluation.SCRIPT, gallery.SCRIPT, comparison.SCRIPT])
def test_the_policy_admits_the_scripts_of_all_pages(script):
    assert f"'{digest(script)}'" in HEADERS["Content-Security-Policy"]
