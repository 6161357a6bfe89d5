"""Only what a manifest lists is read, and whatever else a checkpoint's files hold is one sentence."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from amortized.checkpointing import CheckpointError, find_checkpoint, load_generator, read_part
from amortized.checkpointing.checkpoint import best_of, list_checkpoints, load_manifest, load_meta, verify
from amortized.checkpointing.shards import stored_tensors
from tests.checkpointing.saving import META, checkpoints_in, same, saved, state_of


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 4 and 5."""
    run = tmp_path_factory.mktemp("good") / "run"
    saved(run / "checkpoints", 4, 5)
    return run


@pytest.fixture
def run(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def newest(run: Path) -> Path:
    return run / "checkpoints/step_000005"


def rewrite(path: Path, data: Any) -> None:
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def relist(checkpoint: Path) -> None:
    """Make the manifest match the files that are there: only their contents are wrong."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in checkpoint.iterdir()
        if path.name != "manifest.json"
    }
    rewrite(checkpoint / "manifest.json", {"files": files})


def restored(run: Path) -> tuple[int | None, list[str]]:
    """The step that `restore` finds, whose state is exactly that of its save, and its notes."""
    state, notes = state_of(0), []
    meta = checkpoints_in(run / "checkpoints").restore(state, META.prior, notes.append)
    assert meta is None or same(state, state_of(meta.step))
    assert all("\n" not in note for note in notes)
    return meta and meta.step, notes


UNLISTED = [
    "zz.safetensors",
    "a.safetensors",
    "shard-00000-model.safetensors",
    ".x.safetensors",
    "model.bin",
    "a b",
]


@pytest.mark.parametrize("name", UNLISTED)
def test_files_that_are_not_listed_are_reported_and_not_read(run, name, caplog):
    (shard,) = newest(run).glob("shard-*")
    foreign = {key: torch.zeros_like(value) for key, value in load_file(shard).items()}
    save_file(foreign, newest(run) / name)
    step, (note,) = restored(run)
    assert step == 5 and "which are not read" in note and name in note
    weights = read_part(find_checkpoint(run), "generator")
    assert torch.equal(weights["0.weight"], state_of(5).generator.state_dict()["0.weight"])
    assert name in caplog.text


@pytest.mark.parametrize("name", ["._shard-00001-model-00001-of-00001.safetensors", "._state.json"])
def test_files_of_macos_are_ignored_with_a_note(run, name):
    (newest(run) / name).write_bytes(b"\0\5\26\7")
    step, (note,) = restored(run)
    assert step == 5 and "files of macOS" in note


BAD_FILES = {
    "no files": {},
    "a list": [],
    "null": None,
    "state.json alone": lambda files: {"state.json": files["state.json"]},
    "shards alone": lambda files: {k: v for k, v in files.items() if k != "state.json"},
    "no digest": lambda files: {k: {"bytes": v["bytes"]} for k, v in files.items()},
    "a size as text": lambda files: {k: {**v, "bytes": str(v["bytes"])} for k, v in files.items()},
    "a size as true": lambda files: {k: {**v, "bytes": True} for k, v in files.items()},
    "a negative size": lambda files: {k: {**v, "bytes": -1} for k, v in files.items()},
    "an endless size": lambda files: {k: {**v, "bytes": 10**30} for k, v in files.items()},
    "a digest in capitals": lambda files: {k: {**v, "sha256": v["sha256"].upper()} for k, v in files.items()},
    "a digest as number": lambda files: {k: {**v, "sha256": 5} for k, v in files.items()},
    "more keys": lambda files: {k: {**v, "path": "/etc/passwd"} for k, v in files.items()},
    **{
        f"a file {name!r}": lambda files, name=name: {**files, name: {"bytes": 0, "sha256": "0" * 64}}
        for name in ("../secret", "/etc/passwd", "a/b", "a\\b", "..", "", "a\0b", ".lock", "x" * 300, "é")
    },
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_manifest_of_another_shape_is_damaged(run, kind):
    path, change = newest(run) / "manifest.json", BAD_FILES[kind]
    files = json.loads(path.read_text())["files"]
    rewrite(path, {"files": change(files) if callable(change) else change})
    with pytest.raises(CheckpointError, match="step_000005 is damaged") as error:
        verify(newest(run))
    assert "\n" not in str(error.value)
    step, (note,) = restored(run)
    assert step == 4 and note.endswith("trying the one before")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["step", "files", "state.json", "manifest.json", 3, 5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def mutated(data: Any, path: list[int], value: Any, action: str) -> Any:
    """A copy of JSON data with one entry, found by the numbers in `path`, replaced, removed or added."""
    copied = inner = copy.deepcopy({"top": data})
    key: Any = "top"
    for number in path:
        if not isinstance(inner[key], dict) or not inner[key]:
            break
        inner, key = inner[key], sorted(inner[key])[number % len(inner[key])]
    if action == "remove" and key != "top":
        del inner[key]
    elif action == "add" and isinstance(inner[key], dict):
        inner[key]["extra"] = value
    else:
        inner[key] = value
    return copied["top"]


MUTATION = st.tuples(
    st.lists(st.integers(0, 9), max_size=3), VALUES, st.sampled_from(["replace", "remove", "add"])
)


@settings(max_examples=150)
@given(file=st.sampled_from(["manifest.json", "state.json"]), change=MUTATION)
def test_mutated_json_is_one_sentence_or_harmless(good, tmp_path_factory, file, change):
    folder = tmp_path_factory.mktemp("mutated") / "step_000005"
    shutil.copytree(newest(good), folder)
    manifest, meta = load_manifest(folder), load_meta(folder)
    rewrite(folder / file, mutated(json.loads((folder / file).read_text()), *change))
    if file == "state.json":
        relist(folder)
    try:
        verify(folder)
    except CheckpointError as error:
        assert "step_000005 is damaged (" in str(error)
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:  # only a key that nobody reads, or a value that may have any value
        assert load_manifest(folder).keys() >= manifest.keys() and load_meta(folder).step == meta.step
    best_of([folder])
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"null", b"[]", b"NaN"]
)
@pytest.mark.parametrize("file", ["manifest.json", "state.json"])
def test_an_old_checkpoint_that_is_damaged_does_not_matter(run, file, data):
    (run / "checkpoints/step_000004" / file).write_bytes(data)
    assert restored(run) == (5, [])
    assert find_checkpoint(run).name == "step_000005"
    checkpoints = saved(run / "checkpoints", 6, keep=1, best_by="loss")
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_000006"]
    assert checkpoints.pop_messages() == []


@pytest.mark.parametrize("target", ["elsewhere", "step_000004", "missing", "step_000005"])
def test_a_link_is_not_a_checkpoint(run, tmp_path, target):
    shutil.move(newest(run), tmp_path / "elsewhere")
    newest(run).symlink_to(tmp_path / target if target == "elsewhere" else target)
    step, (note,) = restored(run)
    assert step == 4 and "step_000005 is a link or a file, not a checkpoint: it is skipped" in note
    assert find_checkpoint(run).name == "step_000004"
    saved(run / "checkpoints", 5, 6, 7, keep=1)  # takes the link's place, and is removed later
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_000007"]
    assert (tmp_path / "elsewhere/manifest.json").exists()
    shutil.rmtree(run / "checkpoints/step_000007")
    newest(run).symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint: .*; links to checkpoints are not followed"):
        find_checkpoint(run)


# ---- shards ------------------------------------------------------------------------------------


def change_shards(checkpoint: Path, kind: str) -> None:
    (shard,) = checkpoint.glob("shard-*")
    tensors = load_file(shard)
    name, half = "generator.0.weight", tensors["generator.0.weight"][:1]
    other = shard.with_name("shard-00002-model-00001-of-00001.safetensors")

    def offsets(rows: dict[str, int]) -> dict[str, str]:
        places = {key: {"saved_offsets": [0] * value.ndim} for key, value in tensors.items()}
        for key, row in rows.items():
            places[key]["saved_offsets"][0] = row
        return {"DCP_SHARDING_INFO": json.dumps(places)}

    match kind:
        case "missing":
            save_file({k: v for k, v in tensors.items() if k != name}, shard)
        case "unexpected":
            save_file({**tensors, "generator.9.weight": half.clone()}, shard)
        case "gap":
            save_file(tensors, shard, metadata=offsets({name: 1}))
        case "overlap":
            save_file(tensors, shard, metadata=offsets({}))
            save_file({name: half.clone()}, other, metadata=offsets({name: 1}))
        case "far":
            save_file(tensors, shard, metadata=offsets({name: 2**40}))
        case "other type":
            save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, shard)
        case "not finite":
            save_file({**tensors, name: tensors[name] * float("nan")}, shard)
        case "no offsets":
            save_file(tensors, shard, metadata={"DCP_SHARDING_INFO": "[]"})
        case "other shape":
            save_file({**tensors, name: tensors[name].T.contiguous()}, shard)
        case "no tensors":
            save_file({}, shard)


KINDS = [
    "missing",
    "unexpected",
    "gap",
    "overlap",
    "far",
    "other type",
    "no offsets",
    "other shape",
    "no tensors",
]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_do_not_fit_are_refused_by_name(run, kind):
    """With a manifest that matches: someone made this checkpoint."""
    change_shards(newest(run), kind)
    relist(newest(run))
    verify(newest(run))
    with pytest.raises(
        CheckpointError, match="step_000005 (does not fit|is damaged|cannot be used)"
    ) as error:
        checkpoints_in(run / "checkpoints").restore(state_of(0), META.prior, print)
    assert "\n" not in str(error.value) and len(str(error.value)) < 800


def test_ema_weights_that_are_missing_unexpected_or_not_finite_are_not_used(run):
    (shard,) = newest(run).glob("shard-*")
    tensors = load_file(shard)
    nan = torch.full_like(tensors["ema.bias"], float("nan"))
    more = {**tensors, "ema.extra": nan.clone()}
    for changed in (
        {**tensors, "ema.bias": nan},
        more,
        {k: v for k, v in tensors.items() if k != "ema.bias"},
    ):
        save_file(changed, shard)
        relist(newest(run))
        with pytest.raises(CheckpointError, match=r"ema\.(bias|extra)"):
            load_generator(run, nn.Linear(4, 2))


def test_shards_of_several_processes_are_one_tensor(run):
    (shard,) = newest(run).glob("shard-*")
    for rank, rows in enumerate(([0, 2], [2, 3], [3, 3])):
        place = {"x": {"saved_offsets": [rows[0], 0]}, "y": {"saved_offsets": [0, rank]}}
        part = {"x": torch.ones(rows[1] - rows[0], 4), "y": torch.ones(2, 1)}
        name = shard if rank == 0 else shard.with_name(f"shard-0000{rank + 1}.safetensors")
        save_file(part, name, metadata={"DCP_SHARDING_INFO": json.dumps(place)})
    relist(newest(run))
    shapes = {name: entry.shape for name, entry in stored_tensors(newest(run)).items()}
    assert shapes == {"x": (3, 4), "y": (2, 3)}
