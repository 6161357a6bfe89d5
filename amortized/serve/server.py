"""Run a service: load its models, listen, and at SIGTERM finish what was accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from amortized import __version__
from amortized.serve.access import Quota, Tokens, Usage, is_loopback
from amortized.serve.app import Settings, create_app
from amortized.serve.batcher import Batcher
from amortized.serve.boundary import OPEN, Boundary
from amortized.serve.jobs import ORPHAN_S, Jobs, Limits
from amortized.serve.logs import log, where
from amortized.serve.metrics import Metrics
from amortized.serve.models import EngineLike, Models, ServedModel
from amortized.serve.store import Store
from amortized.serve.workers import AssetPool, Maker

EVERY_S = 60.0  # between looks for objects that nobody makes
SWEEP_S = 600.0  # between looks at the whole store, for old results and too many
CLOSE_S = 3.0  # for open streams, at the end


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """A service but for its models."""

    store: Path
    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one
    tokens: Path | None = None
    workers: int = 1
    batch_wait_s: float = 0.0
    preview_limit_s: float = 60.0
    asset_limit_s: float = 300.0
    asset_memory: int | None = None  # bytes
    store_bytes: int = 10 * 2**30
    keep_s: float = 7 * 86_400.0
    grace_s: float = 30.0
    reload_s: float | None = 30.0  # between looks for newer checkpoints; None: never
    connections: int = 1000
    limits: Limits = field(default_factory=Limits)
    quota: Quota = field(default_factory=Quota)
    requests: Settings = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The loaded models of a service and what makes their files."""

    engines: Sequence[tuple[str, EngineLike, int]]  # name, engine, batch size
    maker: Maker
    newer: Callable[[Any], EngineLike | None] = lambda engine: None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError if the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol: asyncio turns Nagle's algorithm off only then, which delays answers by 40 ms.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(2048)
        return opened
    except OSError as error:
        opened.close()
        raise ValueError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another --port"
        ) from None


def check_exposure(config: ServiceConfig) -> None:
    """Raise ValueError for an address that others can reach, without tokens."""
    if config.tokens is None and not is_loopback(config.host):
        raise ValueError(
            f"--host {config.host} lets other machines in: give a --token-file, or listen on 127.0.0.1"
        )


def run(config: ServiceConfig, loaded: Engines, on_listening: Callable[[str], None]) -> int:
    """Serve until SIGTERM or Ctrl-C; returns how many accepted objects are left for a restart.

    `on_listening` receives the address. Raises ValueError.
    """
    check_exposure(config)
    tokens = Tokens(config.tokens) if config.tokens is not None else None
    with listen(config.host, config.port) as opened:
        return asyncio.run(_serve(config, loaded, tokens, opened, on_listening))


async def _serve(
    config: ServiceConfig,
    loaded: Engines,
    tokens: Tokens | None,
    opened: socket.socket,
    on_listening: Callable[[str], None],
) -> int:
    usage, port = Usage(config.quota if tokens else NO_QUOTA), opened.getsockname()[1]
    jobs, batcher_of = build_jobs(config, loaded, usage)
    app = Boundary(
        create_app(jobs, usage, config.requests),
        jobs.metrics,
        tokens=tokens,
        port=port,
        is_open=lambda path: path in OPEN or path == "/" or path.startswith("/static/"),
    )
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=config.connections,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=int(CLOSE_S),
            h11_max_incomplete_event_size=16 * 1024,
        )
    )
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)  # the second one; workers end with this process
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError, RuntimeError):  # Windows, or not the main thread
            loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve(sockets=[opened]))
    background = [
        asyncio.create_task(_every(EVERY_S, lambda: jobs.recover(older_s=ORPHAN_S))),
        asyncio.create_task(_every(SWEEP_S, lambda: jobs.do(jobs.store.sweep))),
        asyncio.create_task(_warm(jobs, config)),
    ]
    if config.reload_s is not None:
        background.append(
            asyncio.create_task(_every(config.reload_s, lambda: jobs.models.reload(batcher_of)))
        )
    await jobs.recover()
    host = f"[{config.host}]" if ":" in config.host else config.host
    on_listening(f"http://{host}:{port}")
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    log("draining", objects=len(jobs.active), grace_s=config.grace_s)
    for task in background:
        task.cancel()
    left = await jobs.drain(config.grace_s)
    server.should_exit = True
    await serving
    jobs.close()
    log("stopped", left=left)
    return left


NO_QUOTA = Quota(requests_per_minute=None, objects=None, batch_objects=None, asset_seconds_per_hour=None)


def build_jobs(
    config: ServiceConfig, loaded: Engines, usage: Usage
) -> tuple[Jobs, Callable[[EngineLike], Batcher]]:
    """The jobs of a service, and the function that makes a model's batcher. Needs a running loop."""
    metrics = Metrics()
    # One thread: two calls of an engine at once would share the device's memory, and gain nothing.
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def batcher_of(engine: EngineLike, size: int) -> Batcher:
        return Batcher(
            engine.preview_batch,
            thread,
            size=size,
            wait_s=config.batch_wait_s,
            limit_s=config.preview_limit_s,
            on_batch=metrics.batch,
        )

    served = [
        ServedModel(name=name, engine=engine, batcher=batcher_of(engine, size))
        for name, engine, size in loaded.engines
    ]
    models = Models(served, newer=loaded.newer)
    sizes = max(size for *_, size in loaded.engines)
    pool = AssetPool(loaded.maker, config.workers, limit_s=config.asset_limit_s, memory=config.asset_memory)
    store = Store(config.store, max_bytes=config.store_bytes, keep_s=config.keep_s)
    jobs = Jobs(models, pool, store, metrics, config.limits, usage.add_asset)
    metrics.gauge("generate", lambda: sum(len(model.batcher) for model in models))
    metrics.gauge("assets", lambda: len(pool))
    metrics.gauge("objects", lambda: len(jobs.active))
    metrics.info(__version__, served[0].engine.digest)
    return jobs, lambda engine: batcher_of(engine, sizes)


async def _every(seconds: float, action: Callable[[], Any]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await action()
        except Exception as error:  # the disk, a folder of another program: try again later
            log("maintenance failed", level=logging.WARNING, error=where(error))


async def _warm(jobs: Jobs, config: ServiceConfig) -> None:
    """Load the first model in every worker, so that the first object does not wait for it."""
    task = next(iter(jobs.models)).engine.task("", 0, {"formats": []})
    folders = [config.store / f".warm.{os.getpid()}.{number}" for number in range(config.workers)]
    made = (jobs.pool.make(task, folder, background=True) for folder in folders)
    await asyncio.gather(*made, return_exceptions=True)
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


class _Server(uvicorn.Server):
    """A server that leaves the signals to `run`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
