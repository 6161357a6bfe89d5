"""Services in other processes: signals, kills, slow clients, two replicas on one store."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tests.rooms import ROOT
from tests.serve.fakes import events_of, file_of, picture_of


@dataclass
class Running:
    process: subprocess.Popen[str]
    port: int
    log: IO[str]  # a file: the service would wait for a full pipe that nobody reads
    address: str  # the line that it prints

    def __call__(self, method: str, path: str, data: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps(data) if data is not None else None
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, prompt: str, **fields: Any) -> dict[str, Any]:
        status, body = self("POST", "/v1/objects", {"prompt": prompt, **fields})
        assert status in (200, 202), body
        return json.loads(body)

    def stop(self) -> tuple[int, list[str], str]:
        """SIGTERM; returns the exit status, the last line of stdout (calls, objects left), and stderr."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=30)
        self.log.seek(0)
        return self.process.returncode, out.split(), self.log.read()


@contextmanager
def started(command: list[str]) -> Iterator[Running]:
    """Context: a service as a process, once it has printed its address."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline()
            yield Running(process, urlsplit(address.split(" ")[0].strip()).port or 0, log, address)
        finally:
            process.kill()


@contextmanager
def running(store: Path, seconds: float = 0.0, grace_s: float = 20.0) -> Iterator[Running]:
    command = [sys.executable, "-m", "tests.serve.fake_service", str(store), str(seconds), str(grace_s)]
    with started(command) as service:
        yield service


def test_sigterm_under_load_loses_nothing(tmp_path: Path) -> None:
    """Every object whose request was answered is done, or made by the next process; others were refused."""
    with running(tmp_path, seconds=0.5, grace_s=0.3) as it:
        accepted: list[dict[str, Any]] = []
        refused: list[int] = []

        def load(worker: int) -> None:
            for number in range(200):
                try:
                    status, body = it("POST", "/v1/objects", {"prompt": f"{worker} {number}"})
                except OSError:
                    return
                if status == 202:
                    accepted.append(json.loads(body))
                else:
                    refused.append(status)
                    time.sleep(0.05)

        threads = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        returncode, (calls, left), err = it.stop()
        for thread in threads:
            thread.join()
        assert returncode == 0 and int(left) > 0 and int(calls) > 0
        assert set(refused) <= {503, 429} and len(accepted) > 10
    with running(tmp_path) as it:
        for made in accepted:
            status, body = it("GET", made["events"])
            done = events_of(body)[-1]
            assert status == 200 and done[1] == "done"
            _, picture = it("GET", done[2]["files"]["preview.png"]["url"])
            assert picture == picture_of(made["prompt"], 0)


def test_a_killed_service_continues_and_slow_clients_do_not_stop_it(tmp_path: Path) -> None:
    with running(tmp_path) as it:
        made = it.post("slow 0.5", formats=["glb"])
        while json.loads(it("GET", made["url"])[1])["progress"] < 20:
            time.sleep(0.02)
        it.process.kill()  # in the middle of its files
        it.process.wait()
    with running(tmp_path) as it:
        # Clients that send half a body, or nothing, or leave their stream, while the object is made again.
        half = (
            b"POST /v1/objects HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n" % it.port
        )
        clients = []
        for request in (half + b"Content-Length: 100\r\n\r\n{", b"GET / HT", b""):
            clients.append(socket.create_connection(("127.0.0.1", it.port)))
            clients[-1].sendall(request)
        leaving = socket.create_connection(("127.0.0.1", it.port))
        leaving.sendall(f"GET {made['events']} HTTP/1.1\r\nHost: 127.0.0.1:{it.port}\r\n\r\n".encode())
        assert leaving.recv(1000).startswith(b"HTTP/1.1 200")
        leaving.close()
        start = time.monotonic()
        assert it("GET", "/healthz")[0] == 200 and time.monotonic() - start < 2
        assert clients[0].recv(1000).startswith(b"HTTP/1.1 408")
        kind, data = events_of(it("GET", made["events"])[1])[-1][1:]
        assert kind == "done"
        assert it("GET", data["files"]["object.glb"]["url"])[1] == file_of("slow 0.5", 0, "glb")
        assert not list(tmp_path.rglob(".work")) and not list(tmp_path.rglob(".part*"))
        # The server waits for none of them at its end.
        start = time.monotonic()
        assert it.stop()[0] == 0 and time.monotonic() - start < 10


def test_two_replicas_on_one_store_make_each_object_once(tmp_path: Path) -> None:
    with running(tmp_path, seconds=0.3) as first, running(tmp_path, seconds=0.3) as second:
        with ThreadPoolExecutor(8) as threads:
            requests = [(one, f"cube {k}") for k in range(4) for one in (first, second)]
            made = list(threads.map(lambda one: one[0].post(one[1], formats=["glb"], wait=30), requests))
            for (_, prompt), one in zip(requests, made, strict=True):
                assert one["status"] == "done", one
                files = {name: record["sha256"] for name, record in one["files"].items()}
                assert files == {
                    n: r["sha256"] for n, r in made[requests.index((first, prompt))]["files"].items()
                }
                for it in (first, second):  # either one serves it
                    assert it("GET", one["files"]["object.glb"]["url"])[1] == file_of(prompt, 0, "glb")
            assert len({one["id"] for one in made}) == 4
        # 2. One follows what the other one makes, and takes it over when that one is killed.
        made_by_first = first.post("slow 1.5", formats=["glb"])
        while json.loads(second("GET", made_by_first["url"])[1])["progress"] < 15:
            time.sleep(0.05)
        with ThreadPoolExecutor(1) as thread:
            following = thread.submit(second.post, "slow 1.5", formats=["glb"], wait=30)
            time.sleep(0.6)
            first.process.kill()
            done = following.result()
        assert done["status"] == "done" and done["id"] == made_by_first["id"]
        assert second("GET", done["files"]["object.glb"]["url"])[1] == file_of("slow 1.5", 0, "glb")
        returncode, (calls, left), _ = second.stop()
        assert (returncode, left) == (0, "0")
        assert int(calls) <= 4 + 1  # of the four objects, some were the other's; "slow 1.5" once


def test_answers_are_not_delayed(tmp_path: Path) -> None:
    """An open connection gets small answers at once: Nagle's algorithm would hold each for 40 ms."""
    with running(tmp_path) as it:
        connection = http.client.HTTPConnection("127.0.0.1", it.port, timeout=10)
        times = []
        for _ in range(20):
            start = time.monotonic()
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
            times.append(time.monotonic() - start)
        connection.close()
        assert sorted(times)[2] < 0.03
