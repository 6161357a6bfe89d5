"""The API as a client sees it: objects, files, events, batches, images, models, health."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest

from amortized.serve.app import Settings
from amortized.serve.problems import PROBLEMS
from tests.serve.fakes import FakeEngine, events_of, file_of, picture_of, service


def test_an_object_from_the_request_to_its_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            answer = await it.client.post("a cube", formats=["glb", "mp4"], seed=3)
            assert answer.status == 202 and answer.headers["retry-after"] == "1"
            made = answer.json
            assert made["status"] in ("queued", "running") and answer.headers["location"] == made["url"]
            # 1. Its events, in order, until the end; the same from the middle on.
            stream = await it.client("GET", made["events"])
            events = events_of(stream.body)
            kinds = [kind for _, kind, _ in events]
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert [number for number, *_ in events] == list(range(1, len(events) + 1))
            assert kinds[0] == "status" and "preview" in kinds and kinds[-1] == "done"
            progress = [data["progress"] for *_, data in events]
            assert progress == sorted(progress) and progress[-1] == 100
            done = (await it.client("GET", made["url"])).json
            assert done == events[-1][2] and done["report"]["process"]
            assert "owners" not in done and done["finished"] >= done["started"] >= done["created"]
            # 2. Its files.
            expected = {
                "preview.png": picture_of("a cube", 3),
                "object.glb": file_of("a cube", 3, "glb"),
                "turntable.mp4": file_of("a cube", 3, "mp4"),
            }
            assert done["files"].keys() == expected.keys()
            for name, record in done["files"].items():
                file = await it.client("GET", record["url"])
                assert file.body == expected[name] and len(file.body) == record["bytes"]
                assert file.headers["etag"] == f'"{record["sha256"]}"'
                assert file.headers["x-content-type-options"] == "nosniff"
                assert file.headers["content-disposition"].startswith("attachment; filename=")
                again = await it.client(
                    "GET", record["url"], headers={"if-none-match": f'"x", {file.headers["etag"]}'}
                )
                assert again.status == 304 and not again.body
            # 3. The same again is there at once; other files are another object.
            again = await it.client.post("a cube", formats=["mp4", "glb"], seed=3)
            assert again.status == 200 and again.json == done and len(it.engine.calls) == 1
            assert (await it.client.post("a cube", seed=3)).json["id"] != done["id"]
            # 4. Removed, it is gone.
            assert (await it.client("DELETE", done["url"])).status == 204
            for method, path in (("GET", done["url"]), ("GET", made["events"]), ("DELETE", done["url"])):
                assert (await it.client(method, path)).status == 404
            assert not list(tmp_path.rglob("object.glb"))

    asyncio.run(scenario())


def test_waiting_ends_with_the_result_or_after_its_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, FakeEngine(seconds=0.2)) as it:
            assert (await it.client.post("a cube", wait=5)).status == 200
            assert (await it.client.post("a cone", wait=0.05)).status == 202
            variants = await it.client.post("a ball", n=3, seed=2**31 - 2, wait=5)
            assert variants.status == 200
            assert [one["seed"] for one in variants.json["objects"]] == [2**31 - 2, 2**31 - 1, 0]

    asyncio.run(scenario())


def test_events_resume_and_keep_proxies_awake(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(heartbeat_s=0.05)
        async with service(tmp_path, FakeEngine(seconds=0.3), requests=settings) as it:
            made = (await it.client.post("a cube", formats=["glb"])).json
            body = (await it.client("GET", made["events"])).body
            events = events_of(body)
            assert b": \n\n" in body
            for last in ("1", "0", "x", "99999", "-1", "²"):
                headers = {"last-event-id": last.encode("utf-8").decode("latin-1")}
                resumed = events_of((await it.client("GET", made["events"], headers=headers)).body)
                assert resumed[-1][1:] == events[-1][1:]  # a finished object: its end

            # A client that leaves ends its stream; the object is made for the others.
            made = (await it.client.post("a cone", formats=["glb"])).json
            gone, chunks = asyncio.Event(), []
            leaving = asyncio.create_task(
                it.client("GET", made["events"], gone=gone, on_chunk=lambda chunk: chunks.append(chunk))
            )
            staying = asyncio.create_task(it.client("GET", made["events"], headers={"last-event-id": "1"}))
            await asyncio.sleep(0.1)
            gone.set()
            await asyncio.wait([leaving], timeout=2)
            assert leaving.done() and "done" not in [kind for _, kind, _ in events_of(b"".join(chunks))]
            events = events_of((await staying).body)
            assert events[0][0] == 2 and events[-1][1] == "done"

    asyncio.run(scenario())


def test_a_batch_is_read_line_by_line_in_its_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(item_s=0.005)
        async with service(tmp_path, engine, size=4) as it:
            prompts = [f"cube {number}" for number in range(30)] + ["broken", "cube 0"]
            answer = await it.client("POST", "/v1/batches", {"prompts": prompts, "seed": 5})
            batch = answer.json
            assert (
                answer.status == 202 and batch["count"] == 32 and answer.headers["location"] == batch["url"]
            )
            single = asyncio.create_task(it.client.post("a single request", wait=5))
            lines = (await it.client("GET", batch["results"])).body.splitlines()
            objects = [json.loads(line) for line in lines]
            assert [one["prompt"] for one in objects] == prompts
            assert [one["status"] for one in objects] == ["done"] * 30 + ["failed", "done"]
            assert objects[30]["error"]["code"] == "engine_failed" and objects[0] == objects[31]
            # The single request did not wait for all of them.
            order = [prompt for call in engine.calls for prompt in call]
            assert (await single).status == 200 and order.index("a single request") < 20
            summary = (await it.client("GET", batch["url"])).json
            assert summary["statuses"] == {"done": 31, "failed": 1}
            assert (await it.client("GET", f"/v1/batches/{'0' * 64}")).status == 404

    asyncio.run(scenario())


def test_images_in_the_shape_of_openai(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            path = "/v1/images/generations"
            request = {
                "prompt": "a cube",
                "n": 2,
                "size": "256x256",
                "response_format": "b64_json",
                "user": "u",
            }
            answer = await it.client("POST", path, request)
            assert answer.status == 200 and isinstance(answer.json["created"], int)
            pictures = [base64.b64decode(one["b64_json"]) for one in answer.json["data"]]
            assert pictures == [picture_of("a cube", 0), picture_of("a cube", 1)]
            wrong = await it.client("POST", path, {"prompt": "a cube", "size": "9x9"})
            error = wrong.json["error"]
            assert wrong.status == 422 and error["param"] == "size" and error["code"] == "invalid_request"
            assert (await it.client("POST", path, {"prompt": "broken"})).json["error"][
                "type"
            ] == "server_error"

    asyncio.run(scenario())


def test_an_image_whose_client_has_gone_is_not_made(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, FakeEngine(seconds=1.2), size=1) as it:
            await it.client.post("first")
            gone = asyncio.Event()
            request = it.client("POST", "/v1/images/generations", {"prompt": "a cube"}, gone=gone)
            shared = it.client("POST", "/v1/images/generations", {"prompt": "wanted"}, gone=gone)
            await asyncio.sleep(0.1)
            wanted = it.client("POST", "/v1/objects", {"prompt": "wanted", "views": 1, "size": 256})
            tasks = [asyncio.create_task(one) for one in (request, shared, wanted)]
            await asyncio.sleep(0.1)
            gone.set()
            await asyncio.wait(tasks, timeout=5)
            await asyncio.wait([job.task for job in it.jobs.active.values()], timeout=5)
            assert it.engine.calls == [["first"], ["wanted"]]

    asyncio.run(scenario())


def test_the_service_describes_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            await it.client.post("a very secret prompt", wait=5)
            assert (await it.client("GET", "/healthz")).json["status"] == "ok"
            ready = await it.client("GET", "/readyz")
            assert ready.status == 200 and all(ready.json["checks"].values())
            models = (await it.client("GET", "/v1/models")).json["data"]
            assert [model["id"] for model in models] == ["fake"] and models[0]["digest"] == "f" * 16
            for name in ("fake", "f" * 16):
                assert (await it.client.post("a cube", model=name)).status in (200, 202)
            assert (await it.client.post("a cube", model="other")).json["code"] == "unknown_model"
            metrics = (await it.client("GET", "/metrics")).body.decode()
            assert 'a3d_requests_total{route="/v1/objects",status="200"}' in metrics
            assert "secret" not in metrics and "a3d_batch_size_bucket" in metrics
            schema = (await it.client("GET", "/openapi.json")).json
            assert schema["paths"]["/v1/objects"]["post"]["requestBody"]["content"]["application/json"]
            assert "http" not in json.dumps(schema).replace("HTTPValidationError", "")

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/", "/static/viewer/viewer.html", "/static/viewer/model-viewer.js"])
def test_pages_come_with_a_strict_policy(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            page = await it.client("GET", path)
            policy = page.headers["content-security-policy"]
            assert page.status == 200 and policy.startswith("default-src 'none'")
            assert "http" not in policy and "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
            assert not (await it.client("GET", "/healthz")).headers["content-security-policy"].count("self")

    asyncio.run(scenario())


HOSTILE_PATHS = [
    "/static/../problems.py",
    "/static/viewer/../../serve/app.py",
    "/static//etc/passwd",
    "/v1/objects/../../etc/passwd",
    f"/v1/objects/{'0' * 64}/files/..",
    f"/v1/objects/{'0' * 64}/files/status.json",
    "/v1/batches/..",
    "/v1/objects/\x00",
    "/docs",
    "/redoc",
    "/v1/objects/" + "a" * 5000,
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_no_other_file_is_ever_served(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with service(tmp_path) as it:
            made = (await it.client.post("a cube", wait=5)).json
            for one in (path, path.replace("0" * 64, made["id"])):
                answer = await it.client("GET", one)
                assert answer.status in (404, 405) and answer.json["code"] in PROBLEMS
                assert answer.headers["content-type"] == "application/problem+json"

    asyncio.run(scenario())
