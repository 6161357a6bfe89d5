"""Shard folders that others wrote: sound checksums around values of any shape, links, pipes, two writers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortized.conditioning import TextConfig
from amortized.conditioning.encode import locked_folder
from amortized.conditioning.shard_format import Manifest, write_checked_json
from amortized.conditioning.shards import ShardStore
from tests.conditioning.encoding import contents, encoded
from tests.conditioning.letter_encoder import numbered

FREE = ("corpus", "corpus_digest", "encoder", "revision", "fingerprint", "probe")  # any text or numbers
VALUES = [None, True, -1, 0, 1, 2**31, 2**62, 2**70, 1e300, "", "x" * 200, [], [[]], [0], {}, {"a": [1]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(tmp_path_factory.mktemp("shards"))


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def rewrite(path: Path, **changes: Any) -> None:
    """Change values of a JSON file, and its checksum with them; None removes a key."""
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["digest"]
    write_checked_json(path, {**data, **changes})


@pytest.mark.parametrize("key", [*Manifest.__dataclass_fields__, "unknown"])
def test_a_manifest_of_another_shape_is_one_sentence(tmp_path: Path, folder: Path, key: str) -> None:
    broken, refused = copy(folder, tmp_path / "broken"), 0
    before = (broken / "manifest.json").read_bytes()
    for value in VALUES:
        (broken / "manifest.json").write_bytes(before)
        rewrite(broken / "manifest.json", **{key: value})
        try:
            ShardStore(str(broken)).read(["prompt number 3"])
        except ValueError as error:
            refused += 1
            assert str(broken) in str(error) and "\n" not in str(error) and len(str(error)) < 3000
    assert refused > (6 if key in FREE else 9)


@pytest.mark.parametrize("key", ["keys", "offsets", "sizes", "crcs", "overlong", "bytes", "sha256"])
def test_a_shard_whose_list_has_another_shape_is_written_again(
    tmp_path: Path, folder: Path, key: str
) -> None:
    for number, value in enumerate([*VALUES, ["x"] * 5, [-1] * 5, [2**70] * 5]):
        broken = copy(folder, tmp_path / str(number))
        rewrite(broken / "shards/000001.json", **{key: value})
        encoded(broken, verify=True)
        assert key == "overlong" or contents(broken) == contents(folder)


@given(st.data())
def test_a_plan_of_another_shape_is_refused(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, data: st.DataObject
) -> None:
    broken = copy(folder, tmp_path_factory.mktemp("plan") / "broken")
    plan = json.loads((broken / "plan.json").read_text(encoding="utf-8"))
    key = data.draw(
        st.sampled_from([name for name in plan if name == "corpus_digest" or name not in ("digest", *FREE)])
    )
    rewrite(
        broken / "plan.json",
        **{key: data.draw(st.sampled_from(VALUES).filter(lambda value: value != plan[key]))},
    )
    with pytest.raises(ValueError, match="choose another --output"):
        encoded(broken)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["manifest.json", "keys.npy", "places.npy", "plan.json", "shards/000000.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "folder", "sparse"])
def test_pipes_devices_and_loops_are_refused(tmp_path: Path, folder: Path, name: str, kind: str) -> None:
    path = copy(folder, tmp_path / "broken") / name
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**34)
    if name.startswith("shards"):  # written again, or an error of the operating system
        try:
            encoded(tmp_path / "broken")
            assert contents(tmp_path / "broken") == contents(folder)
        except OSError:
            assert kind == "folder"
        return
    with pytest.raises(ValueError, match=str(tmp_path)):
        encoded(tmp_path / "broken") if name == "plan.json" else ShardStore(str(tmp_path / "broken"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("shard", 9), ("offset", 2**40), ("offset", 2**63), ("size", 2**32 - 1), ("size", 10**6)],
)
def test_an_index_that_points_outside_is_refused(
    tmp_path: Path, folder: Path, field: str, value: int
) -> None:
    broken = copy(folder, tmp_path / "broken")
    _replace_array(broken, "places.npy", lambda array: array[field].__setitem__(3, value))
    with pytest.raises(ValueError, match="its index does not fit its shards: rebuild it"):
        ShardStore(str(broken))


def test_keys_out_of_order_are_refused(tmp_path: Path, folder: Path) -> None:
    broken = copy(folder, tmp_path / "broken")
    _replace_array(
        broken,
        "keys.npy",
        lambda array: array.sort(kind="stable") or array[::-1].sort() or array.__setitem__(1, 0),
    )
    with pytest.raises(ValueError, match="its index does not fit"):
        ShardStore(str(broken))


def _replace_array(folder: Path, name: str, change: Any) -> None:
    import hashlib

    array = np.load(folder / name, allow_pickle=False)
    change(array)
    np.save(folder / name, array, allow_pickle=False)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    rewrite(folder / "manifest.json", sha256={**manifest["sha256"], name: digest})


def test_shards_of_the_first_format_are_read_unless_they_were_cut(tmp_path: Path, folder: Path) -> None:
    old = copy(folder, tmp_path / "old")
    rewrite(old / "manifest.json", format=1)
    assert ShardStore(str(old)).read(["prompt number 3"])[0] is not None
    rewrite(old / "manifest.json", format=1, overlong=2)
    with pytest.raises(
        ValueError, match="cut the words for a view off up to 2 texts: encode the corpus again"
    ):
        ShardStore(str(old))
    rewrite(old / "manifest.json", format=3)
    with pytest.raises(ValueError, match="format 3, expected 2"):
        ShardStore(str(old))


# ---- URLs -----------------------------------------------------------------------------------------


def test_urls_are_checked_in_the_settings() -> None:
    TextConfig(shards=("outputs/text", "s3://bucket/text", "simplecache::gs://bucket/text", "memory://text"))
    for url in ("pipe:cat x", "ftp://host/x", "https://me:hush@host/x", "https://host/x?sig=hush", ""):
        with pytest.raises(ValueError) as error:
            TextConfig(shards=(url,))
        assert "hush" not in str(error.value)
        with pytest.raises(ValueError) as error:
            ShardStore(url)
        assert "hush" not in str(error.value)


def test_an_error_of_a_driver_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"403 for https://me:hush@host/{path}?X-Amz-Signature=hush")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", fail)
    with pytest.raises(ValueError, match="cannot be read") as error:
        ShardStore("memory://text")
    assert "hush" not in str(error.value)


# ---- two writers ----------------------------------------------------------------------------------


def test_two_processes_never_write_one_folder(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "text"):
        with pytest.raises(ValueError, match="being encoded by another process .*choose another --output"):
            with locked_folder(tmp_path / "text"):
                pytest.fail("locked twice")
        with locked_folder(tmp_path / "other"):
            pass
    with locked_folder(tmp_path / "text"):
        pass


def test_files_of_others_are_neither_replaced_nor_removed(tmp_path: Path) -> None:
    for name in ("keys.npy", "overlong.txt", "manifest.json"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / name).write_bytes(b"mine")
        with pytest.raises(ValueError, match=f"holds {name} but no plan.json: choose another --output"):
            encoded(tmp_path / name)
        assert (tmp_path / name / name).read_bytes() == b"mine"
    shards = encoded(tmp_path / "text", numbered(7)) / "shards"
    (shards / ".hidden").write_bytes(b"mine")
    (shards / ".000001.0123abcd.tar").write_bytes(b"of a killed process")
    encoded(tmp_path / "text", numbered(7))
    assert (shards / ".hidden").exists() and not (shards / ".000001.0123abcd.tar").exists()
