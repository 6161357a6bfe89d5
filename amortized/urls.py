"""URLs of remote folders: which are allowed, and messages without their secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from amortized.untrusted import short

SCHEMES = ("file", "memory", "s3", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "hf")
# Copies each file to the local disk at its first use. The other caches of fsspec unpickle their index.
CACHE = "simplecache"

# A single slash as well: as a path, s3://bucket becomes s3:/bucket.
URL = re.compile(r"([A-Za-z][\w+.-]+:/{1,2})([^\s'\"<>]*)")
# user:password@ in front of a host. With a colon before the first slash, a password may have any character.
USER = re.compile(r"\A(?:[^/?#]*@|[^/@]*:.*@)")
SECRET = re.compile(
    r"(?i)\b((?:[\w-]*(?:token|secret|password|passwd|signature|credential|api[_-]?key|access[_-]?key)"
    r"[\w-]*|sig|authorization)['\"]?\s*[=:]\s*)['\"]?(?:(?:bearer|basic)\s+)?[^\s&'\",;]+"
)


def redact(text: str) -> str:
    """The text with "***" for passwords, tokens and query strings of the URLs in it.

    For the messages of storage libraries, which quote the URL that they were opened with.
    """

    def hidden(match: re.Match[str]) -> str:
        scheme, rest = match.groups()
        address, question, _ = USER.sub("***@", rest, count=1).partition("?")
        return f"{scheme}{address}{question and '?***'}"

    return SECRET.sub(r"\1***", URL.sub(hidden, text))


def check_url(url: str) -> None:
    """Raise ValueError for a URL of another scheme than SCHEMES or with credentials; a path is always fine.

    `simplecache::` may stand in front. Credentials belong into the environment or the configuration of the
    storage library: a setting is copied into config.yaml, checkpoints and reports.
    """
    *caches, target = url.split("::")
    if not target or any(cache != CACHE for cache in caches):
        raise ValueError(
            f"{_shown(url)}: only {CACHE}:: may stand in front of a URL, and an address must follow it"
        )
    scheme = scheme_of(target)
    if scheme and scheme not in SCHEMES:
        raise ValueError(
            f"{_shown(url)}: addresses of kind {scheme}: are not allowed; "
            f"give a folder or a URL of {', '.join(SCHEMES)}"
        )
    if scheme and redact(target) != target:
        raise ValueError(
            f"{_shown(url)}: must not contain a password, token or query; give credentials by the "
            "environment variables or the configuration file of the storage library"
        )


def check_local(path: str | Path) -> None:
    """Raise ValueError if the path is a URL: as a path, it would make a folder named `s3:`."""
    if scheme := scheme_of(str(path)):
        raise ValueError(
            f"{_shown(str(path))}: must be on a local disk, not at {scheme}:; write it there and copy it"
        )


def open_url(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or path, and the path in it. Raises ValueError; see `check_url`."""
    import fsspec

    check_url(url)
    try:
        files, root = fsspec.core.url_to_fs(url)
    except Exception as error:  # an fsspec driver raises whatever its library does
        raise ValueError(f"{_shown(url)}: cannot be opened ({describe(error)})") from error
    return files, root.rstrip("/") or root


def scheme_of(url: str) -> str:
    """The scheme of an address in lower case; "" for a path. `pipe:` needs no slashes to be one.

    A single letter is a drive; an existing file may have a colon in its name.
    """
    # pathlib turns s3://bucket into s3:/bucket.
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)", url)
    if match is None or (len(match[2]) < 2 and _exists(url)):
        return ""
    return match[1].lower()


def describe(error: Exception) -> str:
    """An error of a storage library in one line of at most 300 characters, without secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(text)[:300]


def _shown(url: str) -> str:
    return short(redact(url))


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
