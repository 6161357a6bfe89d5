"""URLs: only known kinds are opened, and no message has a password or token."""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters, digits

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amortized.urls import SCHEMES, check_local, check_url, describe, open_url, redact, scheme_of

WORDS = st.text(ascii_letters + digits, min_size=1, max_size=12)
SECRETS = WORDS.map(lambda word: f"hush{word}")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "url", ["{}://bucket/folder", "simplecache::{}://bucket/a=b/c-d", "{}://host:9000/x"]
)
def test_the_known_kinds_are_allowed(scheme: str, url: str) -> None:
    check_url(url.format(scheme))


@pytest.mark.parametrize(
    "url",
    ["outputs/text", "/a/b", "./a", "~/x", "C:\\text", "a b", "x.tar", "hf://datasets/user/name@main/text"],
)
def test_paths_and_revisions_are_allowed(url: str) -> None:
    check_url(url)
    open_url(url) if not url.startswith("hf") else None


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat /etc/passwd",
        "pipe://cat",
        "data:;base64,AAAA",
        "ftp://host/x",
        "sftp://host/x",
        "ssh://host/x",
        "github://a:b@/x",
        "reference://x",
        "zip://x.zip",
        "PIPE:ls",
        "javascript:alert(1)",
        "filecache::s3://x/y",
        "zip://a::file:///b.zip",
        "blockcache::https://x/y",
        "simplecache::",
        "simplecache::pipe:ls",
        "python://os",
        "",
    ],
)
def test_other_kinds_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match="not allowed|may stand in front") as error:
        check_url(url)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="not allowed|may stand in front"):
        open_url(url)


@given(st.sampled_from(SCHEMES), SECRETS, SECRETS, WORDS, st.sampled_from("/#@:?%&"))
@example("https", "hush1", "hush2", "host", "/")
def test_credentials_are_refused_and_never_shown(
    scheme: str, user: str, password: str, host: str, letter: str
) -> None:
    for url in (
        f"{scheme}://me:{password}@{host}/x",
        f"{scheme}://me:a{letter}{password}@{host}/x",
        f"{scheme}://{user}@{host}/x",
        f"{scheme}://{host}/x?sig={password}&se=1",
        f"{scheme}://{host}/x?{password}",
        f"simplecache::{scheme}://me:{password}@{host}/x",
    ):
        assert "hush" not in redact(str(Path(url)))
        with pytest.raises(ValueError, match="must not contain") as error:
            check_url(url)
        assert "hush" not in str(error.value) and host in str(error.value)
        for message in (f"[Errno 2] {url}", f"FileNotFoundError('{url}')", f"<{url}> failed at {url}"):
            assert "hush" not in redact(message) and redact(redact(message)) == redact(message)
            assert "hush" not in describe(OSError(message))


@pytest.mark.parametrize(
    "message",
    [
        "bucket/x?sig=hush&sv=2024",
        "X-Amz-Signature=hush, X-Amz-Credential=hush/2024",
        "{'Authorization': 'Bearer hush', 'x': 1}",
        "aws_secret_access_key: hush",
        "access_token=hush",
    ],
)
def test_tokens_outside_of_urls_are_hidden_too(message: str) -> None:
    assert "hush" not in redact(message)


@given(st.lists(WORDS, min_size=1, max_size=6).map(" ".join))
def test_other_text_is_unchanged(text: str) -> None:
    for message in (text, f"{text}: https://host/{text.split()[0]} failed", f"s3://{text.split()[0]}/a@b"):
        assert redact(message) == message


def test_a_url_is_not_a_local_path(tmp_path: Path) -> None:
    for url in ("s3://bucket/x", Path("gs://x"), "pipe:ls", "https://a/b"):
        with pytest.raises(ValueError, match="must be on a local disk"):
            check_local(url)
    odd = tmp_path / "a:b"
    odd.mkdir()
    for path in ("a/b", odd, "C:\\x"):
        check_local(path)
    assert scheme_of("run:1") == "run" and scheme_of(str(odd)) == ""


def test_a_path_with_a_colon_is_a_path_if_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:1").mkdir()
    check_url("run:1")
    check_local("run:1")
