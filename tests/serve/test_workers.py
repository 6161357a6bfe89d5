"""Worker processes: killed, too slow, too greedy; what they leave behind."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from amortized.serve.problems import Failure
from amortized.serve.workers import AssetPool
from tests.serve.fakes import fake_maker, file_of


def task(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "seed": 0, "formats": ["glb"]}


def test_tasks_that_fail_fail_alone(tmp_path: Path) -> None:
    """One worker, one task after the other: each failure has its code, and the next task is made."""

    async def scenario() -> None:
        pool, stages = AssetPool(fake_maker, 1, limit_s=1.0, memory=2**30), []
        try:
            folder = tmp_path / "object" / ".work"
            first = await pool.make(task("a cube"), folder, stages.append)
            assert (folder / "object.glb").read_bytes() == file_of("a cube", 0, "glb")
            assert stages == ["begin", "extract"] and first["process"] != os.getpid()
            assert await pool.make(task("a cube"), folder) == first  # the same process
            codes = {"no surface": "no_surface", "an error": "engine_failed", "deadly": "worker_lost"}
            if sys.platform == "linux":
                codes["greedy"] = "out_of_memory"
            for prompt, code in codes.items():
                with pytest.raises(Failure) as failure:
                    await pool.make(task(prompt), folder)
                assert failure.value.code == code
            again = await pool.make(task("killed once"), folder)
            assert again["process"] != first["process"]
            assert [path.name for path in folder.iterdir()] == ["object.glb"]
            with pytest.raises(Failure) as failure:
                await pool.make(task("slow 30"), folder)
            assert failure.value.code == "timeout" and "1 s" in failure.value.detail
            last = await pool.make(task("a cube"), folder)
        finally:
            pool.close()
        assert not any(psutil.pid_exists(one["process"]) for one in (first, again, last))

    asyncio.run(scenario())


def test_a_killed_worker_is_replaced_in_the_middle_of_a_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        pool = AssetPool(fake_maker, 1, limit_s=20)
        try:
            begun = asyncio.Event()
            stages: list[str] = []

            def on_stage(stage: str) -> None:
                stages.append(stage)
                if stage == "extract":
                    begun.set()

            making = asyncio.create_task(pool.make(task("slow 1"), tmp_path / "a", on_stage))
            await begun.wait()
            killed = pool.workers[0].process.pid
            os.kill(killed, 9)
            assert (await making)["process"] != killed
            assert stages == ["begin", "extract"] * 2
            # 2. Cancelled before it begins, a task is dropped; afterwards its folder is free on return.
            begun.clear()
            running = asyncio.create_task(pool.make(task("slow 0.5"), tmp_path / "b", on_stage))
            waiting = asyncio.create_task(pool.make(task("a cube"), tmp_path / "c"))
            await begun.wait()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert not (tmp_path / "c").exists() and not running.done()
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled() and [p.name for p in (tmp_path / "b").iterdir()] == ["object.glb"]
            # 3. The pool is closed in the middle of a task.
            begun.clear()
            running = asyncio.create_task(pool.make(task("slow 30"), tmp_path / "d", on_stage))
            await begun.wait()
        finally:
            await asyncio.get_running_loop().run_in_executor(None, pool.close)
        with pytest.raises(Failure):
            await running

    asyncio.run(scenario())
