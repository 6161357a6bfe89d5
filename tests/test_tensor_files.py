"""Files of torch.save that others wrote: tensors load, and everything else is one sentence."""

from __future__ import annotations

import collections
import os
import zipfile
from pathlib import Path

import pytest
import torch

from amortized.tensor_files import read_tensor_file

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.5)}


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_state_dict_is_read_alone_or_beside_other_values(tmp_path, wrapped, new_format) -> None:
    others = {"epoch": 3, "global_step": 500, "optimizer_states": [{"lr": 0.1, "m": torch.ones(2)}]}
    state = collections.OrderedDict(STATE)
    data = {"state_dict": state, **others} if wrapped else state
    torch.save(data, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    found, beside = read_tensor_file(tmp_path / "x.pth")
    assert list(found) == list(STATE) and all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert beside.keys() == (others.keys() if wrapped else set())
    assert not wrapped or beside["global_step"] == 500


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_file_that_names_code_is_refused_and_nothing_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, tmp_path / "bad.pt")
    torch.save({"state_dict": STATE, "callbacks": Harmful()}, tmp_path / "beside.pt")
    protocol_4 = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch harmed\x85R."
    (tmp_path / "plain.pt").write_bytes(protocol_4)
    (tmp_path / "old.pt").write_bytes(b"cposix\nsystem\n(S'touch harmed'\ntR.")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(
            ValueError, match=f"{file.name} cannot be loaded as a file of tensors only"
        ) as raised:
            read_tensor_file(file)
        assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)
    with pytest.raises(ValueError, match="it names the code (posix|os).system"):
        read_tensor_file(tmp_path / "beside.pt")
    assert not (tmp_path / "harmed").exists()


def test_a_truncated_file_is_one_sentence_at_every_length(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pth cannot be loaded as a file of tensors only") as raised:
            read_tensor_file(tmp_path / "cut.pth")
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


BAD = {
    "every value must be a tensor": {"a": 3},
    "every value must be a tensor ": {"state_dict": {"a": [torch.ones(1)]}},
    "every value must be a tensor  ": torch.ones(3),
    "every name must be a text": {3: torch.ones(1)},
    "large is not a plain tensor": {"large": torch.ones(1).expand(2**40)},
    "s is not a plain tensor": {"s": torch.eye(3).to_sparse()},
    "m is not a plain tensor": {"m": torch.empty(3, device="meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_state_dict_of_plain_tensors_is_refused(tmp_path: Path, message: str) -> None:
    torch.save(BAD[message], tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth.*{message.strip()}"):
        read_tensor_file(tmp_path / "x.pth")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Google Drive can't scan this file</html>")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with zipfile.ZipFile(tmp_path / "pictures.pth", "w") as archive:
        archive.writestr("picture.png", b"x")
    for name, message in (
        ("page.pth", "cannot be loaded"),
        ("pictures.pth", "cannot be loaded"),
        ("lfs.pth", "is a Git LFS pointer"),
        ("missing.pth", "cannot read"),
        (".", "not a regular file"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            read_tensor_file(tmp_path / name)
        assert "\n" not in str(raised.value)
