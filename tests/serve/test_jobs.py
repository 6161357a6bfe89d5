"""Accepted objects are made exactly once and never lost, whatever happens in between."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from amortized.serve import store as store_module
from amortized.serve.jobs import Limits
from tests.serve.fakes import FakeEngine, Service, events_of, file_of, picture_of, service


async def finished(it: Service, id: str) -> dict[str, Any]:
    """The status of an object after its last event."""
    return events_of((await it.client("GET", f"/v1/objects/{id}/events")).body)[-1][2]


def test_sixty_equal_requests_are_one_batch_of_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, FakeEngine(seconds=0.1)) as it:
            answers = await asyncio.gather(*(it.client.post(" a cube ", wait=5) for _ in range(60)))
            assert {answer.status for answer in answers} == {200}
            assert len({answer.body for answer in answers}) == 1
            assert it.engine.calls == [["a cube"]]
            assert b'a3d_cache_total{layer="in flight",result="hit"} 59.0' in it.jobs.metrics.text()

    asyncio.run(scenario())


def test_different_requests_share_batches_and_one_failure_stays_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, FakeEngine(seconds=0.02), size=8) as it:
            prompts = [f"cube {number}" for number in range(7)] + ["broken"]
            answers = await asyncio.gather(*(it.client.post(one, wait=5) for one in prompts))
            assert [answer.json["status"] for answer in answers] == ["done"] * 7 + ["failed"]
            assert answers[-1].json["error"] == {"code": "engine_failed", "detail": "RuntimeError"}
            assert max(map(len, it.engine.calls)) > 1
            number = len(it.engine.calls)
            await it.client.post("broken", wait=5)  # another try
            assert len(it.engine.calls) == number + 1
            lost = await asyncio.gather(*(it.client.post(one, wait=5) for one in prompts[:7]))
            assert [a.body for a in lost] == [a.body for a in answers[:7]]

    asyncio.run(scenario())


def test_beyond_the_depth_clients_are_sent_away_with_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = Limits(depth=10, batch_depth=20)
        async with service(tmp_path, FakeEngine(seconds=0.05), size=2, limits=limits) as it:
            posts = [it.client.post(f"cube {number}", wait=20) for number in range(40)]
            answers = await asyncio.gather(*posts)
            refused = [answer for answer in answers if answer.status == 429]
            assert [answer.status for answer in answers].count(200) == 10 and len(refused) == 30
            assert {answer.json["code"] for answer in refused} == {"queue_full"}
            assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
            assert (await it.client.post("cube 39", wait=5)).status == 200  # later there is room
            batch = {"prompts": [f"cone {number}" for number in range(21)]}
            assert (await it.client("POST", "/v1/batches", batch)).status == 429
            batch["prompts"].pop()
            assert (await it.client("POST", "/v1/batches", batch)).status == 202
            assert (await it.client.post("a ball", wait=5)).status == 200  # batches leave it its room

    asyncio.run(scenario())


def test_an_object_without_surface_is_a_result(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            made = await it.client.post("no surface", formats=["glb"], wait=20)
            assert made.status == 200 and made.json["error"]["code"] == "no_surface"
            assert made.json["files"].keys() == {"preview.png"}
            again = await it.client.post("no surface", formats=["glb"])
            assert again.status == 200 and again.body == made.body and len(it.engine.calls) == 1
            # A lost process is not one: the next request tries again. Nothing half-made is listed.
            made = await it.client.post("deadly", formats=["glb"], wait=20)
            assert made.json["error"]["code"] == "worker_lost" and made.json["files"].keys() == {
                "preview.png"
            }
            assert (await it.client.post("deadly", formats=["glb"])).status == 202

    asyncio.run(scenario())


def test_draining_finishes_what_was_accepted_and_takes_nothing_new(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, FakeEngine(seconds=0.05), size=1) as it:
            made = [(await it.client.post(f"cube {number}")).json for number in range(8)]
            draining = asyncio.create_task(it.jobs.drain(10))
            await asyncio.sleep(0.02)
            refused = await it.client.post("late")
            assert (
                refused.status == 503
                and refused.json["code"] == "draining"
                and refused.headers["retry-after"]
            )
            assert (await it.client("GET", "/readyz")).status == 503
            assert (await it.client("GET", "/healthz")).status == 200
            assert await draining == 0
            statuses = [it.jobs.store.read(one["id"]) for one in made]
            assert [status and status["status"] for status in statuses] == ["done"] * 8

    asyncio.run(scenario())


def test_what_a_drain_leaves_is_made_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, FakeEngine(seconds=0.05), size=1) as it:
            posts = [
                it.client.post(f"slow {0.4 if number < 2 else 0}", seed=number, formats=["glb"])
                for number in range(4)
            ]
            made = [answer.json["id"] for answer in await asyncio.gather(*posts)]
            batch = await it.client("POST", "/v1/batches", {"prompts": [f"b {k}" for k in range(20)]})
            await asyncio.sleep(0.1)
            assert await it.jobs.drain(0.05) > 10
        on_disk = [it.jobs.store.read(id)["status"] for id in made]  # type: ignore[index]
        assert set(on_disk) <= {"queued", "done"} and "queued" in on_disk
        async with service(tmp_path) as it:
            number = await it.jobs.recover()
            assert number > 10
            for seed, id in enumerate(made):
                status = await finished(it, id)
                assert status["status"] == "done" and status["files"].keys() == {"preview.png", "object.glb"}
                prompt = f"slow {0.4 if seed < 2 else 0}"
                file = await it.client("GET", status["files"]["object.glb"]["url"])
                assert file.body == file_of(prompt, seed, "glb")
            lines = (await it.client("GET", batch.json["results"])).body.splitlines()
            assert len(lines) == 20 and all(b'"status":"done"' in line for line in lines)
            again = [prompt for call in it.engine.calls for prompt in call if prompt.startswith("b ")]
            assert 0 < len(set(again)) == len(again) <= 20
            assert await it.jobs.recover() == 0

    asyncio.run(scenario())


def test_a_full_disk_refuses_new_objects_and_fails_those_in_the_making(tmp_path: Path, monkeypatch) -> None:
    real, is_full = store_module._write, True

    def write(path: Path, data: bytes) -> None:
        if is_full and (path.name != "status.json" or b'"queued"' in data and b"second" in data):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    async def scenario() -> None:
        nonlocal is_full
        monkeypatch.setattr(store_module, "_write", write)
        async with service(tmp_path) as it:
            made = await it.client.post("first", wait=5)
            assert made.json["status"] == "failed" and made.json["error"]["code"] == "storage_full"
            refused = await it.client.post("second")
            await asyncio.sleep(0.05)
            assert refused.status == 507 and refused.json["code"] == "storage_full" and not it.jobs.active
            is_full = False
            for prompt in ("first", "second"):
                made = await it.client.post(prompt, wait=5)
                file = await it.client("GET", made.json["files"]["preview.png"]["url"])
                assert file.body == picture_of(prompt, 0)

    asyncio.run(scenario())


def test_a_damaged_file_is_never_sent_and_made_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            made = (await it.client.post("a cube", wait=5)).json
            path = it.jobs.store.path(made["id"]) / "preview.png"
            path.write_bytes(b"\0" * path.stat().st_size)
            url = made["files"]["preview.png"]["url"]
            assert (await it.client("GET", url)).status == 404
            await it.client.post("a cube", wait=5)
            assert (await it.client("GET", url)).body == picture_of("a cube", 0)
            path.unlink()  # a request notices that too
            await it.client.post("a cube", wait=5)
            assert (await it.client("GET", url)).body == picture_of("a cube", 0)

    asyncio.run(scenario())


def test_deleting_cancels_what_has_not_begun(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, FakeEngine(seconds=0.2), size=1) as it:
            await it.client.post("first")
            waiting = (await it.client.post("second")).json
            events = asyncio.create_task(it.client("GET", waiting["events"]))
            await asyncio.sleep(0.05)
            assert (await it.client("DELETE", waiting["url"])).status == 204
            assert events_of((await events).body)[-1][1] == "deleted"
            assert (await it.client("GET", waiting["url"])).status == 404
            # In the middle of its files: they go as soon as the worker has ended, then it can be made again.
            running = (await it.client.post("slow 0.5", formats=["glb"])).json
            while (await it.client("GET", running["url"])).json["progress"] < 20:
                await asyncio.sleep(0.02)
            assert (await it.client("DELETE", running["url"])).status == 204
            assert (await it.client("GET", running["url"])).status == 404
            again = await it.client.post("slow 0.5", formats=["glb"], wait=20)
            assert again.json["status"] == "done" and again.json["id"] == running["id"]
            assert [call for call in it.engine.calls if call == ["second"]] == []

    asyncio.run(scenario())


def test_a_newer_checkpoint_has_other_ids(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            old = (await it.client.post("a cube", wait=5)).json
            newer = FakeEngine(digest="e" * 16)
            it.jobs.models._newer = lambda engine: newer
            batcher = next(iter(it.jobs.models)).batcher
            assert await it.jobs.models.reload(
                lambda engine: type(batcher)(engine.preview_batch, batcher._thread, size=1)
            ) == ["fake"]
            made = (await it.client.post("a cube", wait=5)).json
            assert made["id"] != old["id"] and made["checkpoint"] == "e" * 16
            url = made["files"]["preview.png"]["url"]
            assert (await it.client("GET", url)).body == picture_of("a cube", 0, "e" * 16)
            assert (await it.client("GET", old["files"]["preview.png"]["url"])).body == picture_of(
                "a cube", 0
            )

            def broken(engine: Any) -> Any:
                raise ValueError("damaged")

            it.jobs.models._newer = broken
            assert await it.jobs.models.reload(lambda engine: batcher) == []

    asyncio.run(scenario())


def test_an_object_of_a_lost_replica_is_taken_over(tmp_path: Path) -> None:
    """Its status says running, and nobody holds its lock."""

    async def scenario() -> None:
        async with service(tmp_path) as it:
            made = (await it.client.post("a cube", formats=["glb"], wait=20)).json
            status = it.jobs.store.read(made["id"]) or {}
            status |= {"status": "running", "progress": 45, "files": {}}
            it.jobs.store.write(made["id"], status)
            (it.jobs.store.work_folder(made["id"])).mkdir()
            assert await it.jobs.recover(older_s=60) == 0  # it may be about to take the lock
            then = time.time() - 100
            os.utime(it.jobs.store.folder / "unfinished" / made["id"], (then, then))
            assert await it.jobs.recover(older_s=60) == 1
            assert (await finished(it, made["id"]))["files"].keys() == {"preview.png", "object.glb"}
            assert not it.jobs.store.work_folder(made["id"]).exists()

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [300])
def test_memory_of_ended_objects_is_free(tmp_path: Path, number: int) -> None:
    async def scenario() -> None:
        async with service(tmp_path, limits=Limits(depth=1000)) as it:
            await asyncio.gather(*(it.client.post(f"cube {k}", wait=20) for k in range(number)))
            await asyncio.sleep(0.01)
            assert not it.jobs.active and not it.jobs._leaving
            assert all(len(model.batcher) == 0 for model in it.jobs.models)

    asyncio.run(scenario())
