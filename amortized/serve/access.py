"""Who may use a service: tokens with names, quotas of each, and the rules for a service without tokens."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from amortized.serve.logs import log
from amortized.serve.problems import Problem
from amortized.untrusted import MiB, read_text, short

MIN_TOKEN = 16  # characters
NAME = re.compile("[A-Za-z0-9_.-]{1,40}")
LOCAL = "local"  # the only owner of a service without tokens
RELOAD_S = 1.0  # the file is looked at this often at most
LOOPBACK_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::([0-9]{1,5}))?")


def is_loopback(host: str) -> bool:
    """Whether an address to listen at can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_local(host: str | None, origin: str | None, port: int | None) -> None:
    """Raise Problem unless a request names this machine, and no page of another site sent it.

    A page of any site can make a browser send requests to a loopback port, also under that site's name, if
    the name leads to 127.0.0.1 (DNS rebinding). `port` None: any.
    """
    named = LOOPBACK_HOST.fullmatch(host or "")
    if named is None or port not in (None, int(named[1] or 80)):
        raise Problem("wrong_host", "this service is for this machine: use http://127.0.0.1")
    if origin is not None and origin != f"http://{host}":
        raise Problem("wrong_host", "a page of another site cannot use this service")


class Tokens:
    """The tokens of a file, one a line: a name and a token, or a name and sha256: with 64 digits.

    Only digests stay in memory. A changed file counts within a second; a broken one leaves the last tokens.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that cannot be read or has a wrong line."""
        self.path = path
        self._digests = read_tokens(path)
        self._stamp, self._looked = self._stamp_now(), time.monotonic()

    def owner(self, authorization: str | None) -> str:
        """The name of the token in an Authorization header. Raises Problem if it is none of the file."""
        self._reload()
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Problem("unauthorized", "send the header Authorization: Bearer TOKEN")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogatepass")).digest()
        owner = None
        for name, known in self._digests:  # all of them, so that the time does not depend on which one fits
            if hmac.compare_digest(digest, known):
                owner = name
        if owner is None:
            raise Problem("unauthorized", "this token is not valid")
        return owner

    def _stamp_now(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError:
            return (0, 0)
        return status.st_mtime_ns, status.st_size

    def _reload(self) -> None:
        if time.monotonic() - self._looked < RELOAD_S:
            return
        self._looked = time.monotonic()
        if (stamp := self._stamp_now()) != self._stamp:
            try:
                self._digests = read_tokens(self.path)
                log("tokens reloaded", names=[name for name, _ in self._digests])
            except ValueError as error:
                log("tokens not reloaded", level=logging.WARNING, reason=str(error)[:200])
            self._stamp = stamp


def read_tokens(path: Path) -> list[tuple[str, bytes]]:
    """(name, sha256 of the token) of each line of a file. Raises ValueError without quoting a token."""
    tokens: list[tuple[str, bytes]] = []
    for number, line in enumerate(read_text(path, MiB).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *rest = line.split()
        if len(rest) != 1 or not NAME.fullmatch(name):
            raise ValueError(f"{short(path)}, line {number}: write a name and a token, with a space between")
        if rest[0].startswith("sha256:"):
            digest = rest[0].removeprefix("sha256:")
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"{short(path)}, line {number}: sha256: needs 64 hexadecimal digits")
            tokens.append((name, bytes.fromhex(digest)))
            continue
        if len(rest[0]) < MIN_TOKEN:
            raise ValueError(
                f"{short(path)}, line {number}: the token of {name} has fewer than {MIN_TOKEN} characters: "
                "make one with `openssl rand -hex 24`"
            )
        tokens.append((name, hashlib.sha256(rest[0].encode()).digest()))
    if not tokens:
        raise ValueError(f"{short(path)} has no token: write lines of a name and a token")
    return tokens


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What each token may use; None: no limit."""

    requests_per_minute: int | None = 600  # that create something
    objects: int | None = 16  # of single requests, which have not ended
    batch_objects: int | None = 2000  # of batches, likewise
    asset_seconds_per_hour: float | None = 3600.0  # of worker processes


class Usage:
    """What each owner has used lately. Owners are the names of tokens: few."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._requests: dict[str, deque[float]] = {}
        self._assets: dict[str, deque[tuple[float, float]]] = {}

    def check(
        self,
        owner: str,
        unfinished: int,
        number: int,
        *,
        background: bool = False,
        makes_assets: bool = False,
    ) -> None:
        """Count a request that creates `number` objects beside `unfinished` ones of its kind.

        `background`: of batches. Raises Problem if it exceeds the owner's quota.
        """
        quota, now = self.quota, time.monotonic()
        requests = self._requests.setdefault(owner, deque())
        while requests and now - requests[0] > 60:
            requests.popleft()
        if quota.requests_per_minute is not None and len(requests) >= quota.requests_per_minute:
            raise _too_many(f"{quota.requests_per_minute:,} requests a minute", 60 - (now - requests[0]))
        objects, kind = (quota.batch_objects, " of batches") if background else (quota.objects, "")
        if objects is not None and unfinished + number > objects:
            raise _too_many(f"{objects:,} unfinished objects{kind}", 5)
        if makes_assets and quota.asset_seconds_per_hour is not None:
            assets = self._assets.get(owner, deque())
            while assets and now - assets[0][0] > 3600:
                assets.popleft()
            if sum(seconds for _, seconds in assets) >= quota.asset_seconds_per_hour:
                limit = f"{quota.asset_seconds_per_hour:,.0f} seconds of files an hour"
                raise _too_many(limit, 3600 - (now - assets[0][0]))
        requests.append(now)

    def add_asset(self, owner: str, seconds: float) -> None:
        """Record the time of a worker."""
        self._assets.setdefault(owner, deque(maxlen=100_000)).append((time.monotonic(), seconds))


def _too_many(limit: str, retry_after_s: float) -> Problem:
    return Problem("too_many_requests", f"each token has {limit}", retry_after_s=retry_after_s)
