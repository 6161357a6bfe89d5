"""A service without PyTorch: an engine and a maker that are pure functions of the prompt, and a client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.knowledge import Knowledge
from amortized.serve.access import Quota, Tokens, Usage
from amortized.serve.app import create_app
from amortized.serve.boundary import OPEN, Boundary
from amortized.serve.jobs import Jobs
from amortized.serve.problems import Failure
from amortized.serve.server import NO_QUOTA, Engines, ServiceConfig, build_jobs

HOST = "127.0.0.1:8000"


def picture_of(prompt: str, seed: int, digest: str = "f" * 16) -> bytes:
    """The preview that the fake engine makes."""
    return b"\x89PNG" + hashlib.sha256(f"{digest} {prompt} {seed}".encode()).digest()


def file_of(prompt: str, seed: int, format: str) -> bytes:
    """The file that the fake maker makes."""
    return f"{format} of {prompt} {seed}".encode()


class FakeEngine:
    """Takes `seconds` for a call and `item_s` for each item; fails for prompts with the word "broken"."""

    def __init__(self, digest: str = "f" * 16, seconds: float = 0.0, item_s: float = 0.0) -> None:
        self.digest, self.seconds, self.item_s = digest, seconds, item_s
        self.calls: list[list[str]] = []
        self.items: list[Any] = []
        self.knowledge = Knowledge(
            corpus="fake",
            number=3,
            prompts=("a red cube", "a blue cube", "a red cone"),
            words=("red", "cube"),
        )

    def about(self) -> dict[str, Any]:
        return {"device": "cpu", "generator": "Fake"}

    def familiarity(self, prompt: str) -> dict[str, Any]:
        return {"far": "dragon" in prompt, "sentences": [f"about {prompt}"]}

    def preview_batch(self, items: Sequence[Any]) -> list[bytes]:
        self.calls.append([item.prompt for item in items])
        self.items += items
        time.sleep(self.seconds + self.item_s * len(items))
        if any("broken" in item.prompt for item in items):
            raise RuntimeError(f"cannot make {items[0].prompt}")
        return [picture_of(item.prompt, item.seed, self.digest) for item in items]

    def task(self, prompt: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": prompt, "seed": seed, "formats": settings["formats"]}


def fake_maker(task: dict[str, Any], folder: Path, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Makes files; words of the prompt make it slow, greedy, or end its process."""
    on_stage("begin")
    prompt, process = task["prompt"], os.getpid()
    if "no surface" in prompt:
        raise Failure("no_surface", "the object is empty")
    if "greedy" in prompt:
        bytearray(2**32)
    if "error" in prompt:
        raise RuntimeError(prompt)
    for format in task["formats"]:
        name = {"obj": "object.obj.zip", "mp4": "turntable.mp4"}.get(format, f"object.{format}")
        (folder / f".part.{name}").write_bytes(b"half of it")
        on_stage("extract")
        if "deadly" in prompt:
            os.kill(process, signal.SIGKILL)
        if "once" in prompt and not (folder.parent / "died").exists():
            (folder.parent / "died").touch()
            os.kill(process, signal.SIGKILL)
        if "slow" in prompt:
            time.sleep(float(prompt.split()[-1]))
        (folder / name).write_bytes(file_of(prompt, task["seed"], format))
        (folder / f".part.{name}").unlink()
    return {"process": process}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Calls an ASGI application without a network."""

    def __init__(self, app: Any, headers: dict[str, str] | None = None) -> None:
        self.app, self.headers = app, {"host": HOST, **(headers or {})}

    async def __call__(
        self,
        method: str,
        path: str,
        data: Any = None,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        chunks: AsyncIterator[bytes] | None = None,
        gone: asyncio.Event | None = None,
        on_chunk: Callable[[bytes], None] = lambda chunk: None,
    ) -> Answer:
        """The answer to a request with JSON `data`, a `body` or its `chunks`; `gone` ends the connection."""
        body = json.dumps(data).encode() if data is not None else body or b""
        sent, head = {"content-type": "application/json", **self.headers, **(headers or {})}, []
        for name, value in sent.items():
            head.append((name.lower().encode("latin-1"), value.encode("latin-1")))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.partition("?")[0],
            "raw_path": path.encode("utf-8", "surrogateescape"),
            "query_string": path.partition("?")[2].encode(),
            "root_path": "",
            "headers": head,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        parts = [body]
        answer = Answer(0, {}, b"")

        async def receive() -> dict[str, Any]:
            if chunks is not None:
                async for chunk in chunks:
                    return {"type": "http.request", "body": chunk, "more_body": True}
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {
                    name.decode(): value.decode("latin-1") for name, value in message["headers"]
                }
            else:
                if gone is not None and gone.is_set():
                    raise OSError("the client has gone")
                answer.body += message.get("body", b"")
                on_chunk(message.get("body", b""))

        await self.app(scope, receive, send)
        return answer

    async def post(self, prompt: str, **fields: Any) -> Answer:
        """Request an object."""
        return await self("POST", "/v1/objects", {"prompt": prompt, **fields})


@dataclass
class Service:
    client: Client
    jobs: Jobs
    engine: FakeEngine
    config: ServiceConfig


@asynccontextmanager
async def service(
    folder: Path,
    engine: FakeEngine | None = None,
    *,
    size: int = 8,
    tokens: Path | None = None,
    **settings: Any,
) -> AsyncIterator[Service]:
    """Context: a service in this process; what is unfinished at its end stays in the store, `folder`."""
    engine = engine or FakeEngine()
    config = ServiceConfig(store=folder, tokens=tokens, **settings)
    usage = Usage(settings.get("quota", Quota()) if tokens else NO_QUOTA)
    loaded = Engines(engines=[("fake", engine, size)], maker=fake_maker)
    jobs, _ = build_jobs(config, loaded, usage)
    app = Boundary(
        create_app(jobs, usage, config.requests),
        jobs.metrics,
        tokens=Tokens(tokens) if tokens else None,
        port=8000,
        is_open=lambda path: path in OPEN,
    )
    try:
        yield Service(Client(app), jobs, engine, config)
    finally:
        await jobs.drain(0)
        jobs.close()


def events_of(body: bytes) -> list[tuple[int, str, dict[str, Any]]]:
    """(id, event, data) of a text/event-stream."""
    events = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events
