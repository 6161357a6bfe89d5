"""The store: never half of anything, nothing outside its folder, room when there is none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.serve import store as module
from amortized.serve.requests import object_id
from amortized.serve.store import Store, StoreFull
from tests.rooms import ROOT

IDS = [object_id("d", f"prompt {number}", 0, {}) for number in range(6)]


def status_of(id: str, **fields: Any) -> dict[str, Any]:
    status = {"id": id, "status": "done", "progress": 100, "prompt": "a cube", "seed": 0, "model": "m"}
    status |= {
        "checkpoint": "d",
        "settings": {},
        "files": {},
        "error": None,
        "owners": ["me"],
        "created": 0.5,
    }
    return status | fields


def open_store(folder: Path, **settings: Any) -> Store:
    return Store(folder, **{"max_bytes": 10**9, "keep_s": 3600.0, **settings})


def put(store: Store, id: str, data: bytes = b"x", age_s: float = 0.0, **fields: Any) -> None:
    store.write(id, status_of(id, files=store.add(id, {"preview.png": data}), **fields))
    then = time.time() - age_s
    os.utime(store.path(id) / "status.json", (then, then))


def test_files_are_those_of_their_digest(tmp_path: Path) -> None:
    store, id = open_store(tmp_path), IDS[0]
    put(store, id, b"picture")
    record = store.read(id)["files"]["preview.png"]  # type: ignore[index]
    assert store.read_file(id, "preview.png", record) == b"picture" and store.is_complete(
        store.read(id) or {}
    )
    (store.path(id) / "preview.png").write_bytes(b"Picture")  # a bit of the disk has changed
    assert store.read_file(id, "preview.png", record) is None
    (store.path(id) / "preview.png").unlink()
    assert store.read_file(id, "preview.png", record) is None and not store.is_complete(store.read(id) or {})


def test_a_folder_of_files_is_moved_by_the_names_of_the_table(tmp_path: Path) -> None:
    store, id = open_store(tmp_path), IDS[0]
    work = store.work_folder(id)
    work.mkdir(parents=True)
    for name in ("object.glb", "status.json", ".part.object.ply", "passwd"):
        (work / name).write_text(name)
    assert list(store.add(id, work)) == ["object.glb"]
    assert [path.name for path in store.path(id).iterdir()] == ["object.glb"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*status_of(IDS[0]), "more"]), VALUES, st.integers(0, 300))
def test_a_damaged_status_is_none(tmp_path_factory, key: str, value: Any, length: int) -> None:
    store = open_store(tmp_path_factory.getbasetemp() / "damaged")
    path = store.path(IDS[0]) / "status.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(status_of(IDS[0]) | {key: value})
    for content in (text, text[:length]):
        path.write_text(content)
        read = store.read(IDS[0])
        assert read is None or (
            read["status"] in ("queued", "running", "done", "failed") and read["files"] == {}
        )
    list(store.unfinished())


@pytest.mark.parametrize("id", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 63 + "\n"])
def test_only_ids_name_objects(tmp_path: Path, id: str) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError):
        store.path(id)
    assert store.read(id) is None and store.read_batch(id) is None


def test_old_and_superfluous_results_go_in_the_order_of_their_last_use(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_bytes=25_000)
    for age, id in enumerate(IDS[:5]):
        put(store, id, bytes(9_000), age_s=600 * (age + 1))
    store.touch(IDS[4])  # a use
    put(store, IDS[5], bytes(9_000), age_s=7200, status="running")  # older than it is stored
    assert store.sweep() == 4  # of 54 kB, two remain
    assert [store.read(id) is not None for id in IDS] == [True, False, False, False, True, False]
    put(store, IDS[1], bytes(30_000), status="queued")
    store.sweep()
    assert store.read(IDS[1]) is not None  # what is not finished is never too much


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    store, id = open_store(tmp_path), IDS[0]
    put(store, id, b"picture", status="running")
    monkeypatch.setattr(module, "_write", full)
    for write in (
        lambda: store.write(id, status_of(id)),
        lambda: store.add(id, {"object.glb": b"new"}),
        lambda: store.write_batch(IDS[1], {}),
    ):
        with pytest.raises(StoreFull):
            write()
    assert store.read(id)["status"] == "running" and store.read_batch(IDS[1]) is None  # type: ignore[index]


def test_a_full_disk_makes_room_from_old_results(tmp_path: Path, monkeypatch) -> None:
    store, real = open_store(tmp_path), module._write
    put(store, IDS[0], b"old", age_s=100)
    put(store, IDS[1], b"in the making", age_s=200, status="running")

    def write(path: Path, data: bytes) -> None:
        if store.read(IDS[0]) is not None:
            full()
        real(path, data)

    monkeypatch.setattr(module, "_write", write)
    store.write(IDS[2], status_of(IDS[2]))
    assert [store.read(id) is not None for id in IDS[:3]] == [False, True, True]


HOLD = """
import sys, time
from pathlib import Path
from amortized.serve.store import Store
store = Store(Path(sys.argv[1]), max_bytes=1, keep_s=0.0)
lock = store.lock(sys.argv[2])
print("locked" if lock else "no", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    store, id = open_store(tmp_path, max_bytes=0), IDS[0]
    put(store, id)
    command = [sys.executable, "-c", HOLD, str(tmp_path), id]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        assert store.lock(id) is None and not store.remove(id) and store.sweep() == 0
        other.kill()
        other.wait()
    lock = store.lock(id)
    assert lock is not None and store.lock(id) is None  # in the same process too
    lock.close()
    assert store.remove(id) and not store.path(id).exists()
