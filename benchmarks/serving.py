"""Measure the HTTP service on loopback: requests a second and waits, with micro-batches and without.

  python -m benchmarks.serving
  python -m benchmarks.serving --model exported/quickstart --seconds 30

Each request asks for the preview of another prompt and waits for it. The engine of fixed time takes 20 ms a
call and 2 ms an item, so that single calls end at 45 objects a second, and batches of 8 at 222. With and
without batches are measured in turn. The service is another process; its store is a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from amortized.arguments import number, path_text, whole
from amortized.cli import parser_for, run_command
from amortized.generation import ModelSource
from amortized.serve.engine import Engine, make_asset_files
from amortized.serve.server import Engines, ServiceConfig, run
from benchmarks.timing import machine, markdown

CALL_S, ITEM_S = 0.020, 0.002


class FixedTime:
    """An engine that sleeps."""

    digest, knowledge = "0" * 16, None

    def familiarity(self, prompt: str) -> dict[str, Any]:
        return {}

    def about(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def preview_batch(self, items: Sequence[Any]) -> list[bytes]:
        time.sleep(CALL_S + ITEM_S * len(items))
        return [item.prompt.encode() for item in items]

    def task(self, prompt: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        return {}


def no_files(task: dict[str, Any], folder: Path, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """The worker of a service that makes previews only."""
    return {}


def serve(model: str | None, size: int, store: str, pipe: Any) -> None:
    """Serve in this process; sends the port."""
    if model is None:
        engines = Engines(engines=[("fixed", FixedTime(), size)], maker=no_files)
    else:
        torch.set_num_threads(1)
        is_run = (Path(model) / "config.yaml").exists()
        engine = Engine.load(ModelSource(path=model, is_run=is_run))
        engines = Engines(engines=[("model", engine, size)], maker=make_asset_files)
    wait_s = 0.005 if size > 1 and model is None else 0.0
    config = ServiceConfig(store=Path(store), port=0, batch_wait_s=wait_s, grace_s=1.0)
    run(config, engines, lambda address: pipe.send(int(address.rpartition(":")[2])))


async def load(port: int, clients: int, seconds: float, size: int) -> tuple[list[float], list[int]]:
    """The times of requests and their HTTP statuses, from `clients` connections that wait for answers."""
    times, statuses, end = [], [], time.perf_counter() + seconds

    async def client(which: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while (start := time.perf_counter()) < end:
            count += 1
            data = {"prompt": f"object {which} {count} {start}", "wait": 60, "views": 1, "size": size}
            status, _ = await request(reader, writer, port, "POST", "/v1/objects", json.dumps(data))
            times.append(time.perf_counter() - start)
            statuses.append(status)
        writer.close()

    await asyncio.gather(*(client(which) for which in range(clients)))
    return times, statuses


async def request(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    port: int,
    method: str,
    path: str,
    body: str = "",
) -> tuple[int, bytes]:
    """The status and body of one request on an open connection."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = re.search(r"content-length: (\d+)", answer)
    assert length is not None
    return int(answer.split()[1]), await reader.readexactly(int(length[1]))


async def batches(port: int) -> tuple[float, float]:
    """How many calls of the engine there were so far, and how many items."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _, body = await request(reader, writer, port, "GET", "/metrics")
    writer.close()
    values = re.findall(r"(?m)^a3d_batch_size_(?:count|sum) (\S+)$", body.decode())
    return float(values[0]), float(values[1])


def resident_mib(process: int) -> int:
    """The memory of a process in RAM; 0 on systems without /proc."""
    path = Path(f"/proc/{process}/status")
    found = re.search(r"VmRSS:\s+(\d+)", path.read_text(encoding="ascii")) if path.exists() else None
    return int(found[1]) // 1024 if found else 0


async def measure(port: int, process: int, clients: int, seconds: float, size: int) -> dict[str, str | float]:
    """A row of the table."""
    before = await batches(port)
    start = time.perf_counter()
    times, statuses = await load(port, clients, seconds, size)
    took, after = time.perf_counter() - start, await batches(port)
    centiles = statistics.quantiles(times, n=100) if len(times) > 1 else times * 99
    return {
        "clients": clients,
        "requests/s": round(len(times) / took, 1),
        "p50, ms": round(1e3 * centiles[49], 1),
        "p99, ms": round(1e3 * centiles[98], 1),
        "items a call": round((after[1] - before[1]) / max(1, after[0] - before[0]), 2),
        "not 200": sum(status != 200 for status in statuses),
        "service, MiB": resident_mib(process),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=path_text, help="a run or an export, instead of the fixed times")
    parser.add_argument("--seconds", type=number(0.1, 3600), default=10, help="of each row (%(default)g)")
    parser.add_argument("--clients", type=whole(1, 1024), nargs="+", default=[1, 16, 64])
    parser.add_argument("--batch", type=whole(2, 64), default=8, help="items of a call (%(default)s)")
    parser.add_argument("--size", type=int, choices=(64, 128, 256), default=64, help="pixels (%(default)s)")


def run_benchmark(args: argparse.Namespace) -> int:
    """Measure, and print a table; returns the exit status."""
    rows, spawn = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        services = {}
        for name, size in {"batches": args.batch, "single calls": 1}.items():
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(args.model, size, f"{folder}/{size}", theirs))
            process.start()
            theirs.close()
            services[name] = (ours.recv(), process)
        try:
            for clients in args.clients:
                for name, (port, process) in services.items():
                    row = asyncio.run(measure(port, process.pid or 0, clients, args.seconds, args.size))
                    rows.append({"engine": args.model or "fixed time", "with": name, **row})
                    print(json.dumps(rows[-1]), flush=True)
        finally:
            for _, process in services.values():
                process.terminate()
                process.join()
    print(f"\n{machine(torch.device('cpu'))}\n\n{markdown(rows)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("python -m benchmarks.serving", __doc__)
    add_arguments(parser)
    return run_command(parser, run_benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
