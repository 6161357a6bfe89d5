"""A Hub id becomes a folder before anything is read, and without permission the network is not used."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from amortized.conditioning import load_text_encoder
from amortized.model_folders.hub import local_folder
from amortized.model_folders.prior_folder import wanted_files
from amortized.priors import fingerprint_of, load_stable_diffusion
from tests.model_folders.families import valid

NAME, COMMIT = "someone/a-model", "0" * 40


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """A snapshot of the tiny prior in a Hub cache, as links to blobs; sockets fail the test."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--someone--a-model"
    blobs = shutil.copytree(valid("prior"), repository / "blobs")
    shutil.copytree(blobs, repository / "snapshots" / COMMIT, copy_function=os.symlink)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*arguments: object, **keywords: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return repository / "snapshots" / COMMIT


def test_a_cached_id_is_its_snapshot(cached) -> None:
    for revision in (None, "main", COMMIT):
        assert local_folder(NAME, revision=revision) == cached
    prior, encoder = load_stable_diffusion(NAME, revision=COMMIT), load_text_encoder(NAME)
    assert fingerprint_of(prior) == fingerprint_of(load_stable_diffusion(valid("prior")))
    assert prior.text_encoder.name == f"{NAME} at {COMMIT}" and encoder.name == NAME


def test_a_missing_id_is_one_sentence(cached) -> None:
    for name, revision in ((f"{NAME}-2", None), (NAME, "other"), (NAME, "1" * 40)):
        with pytest.raises(
            ValueError, match="neither a folder nor a Hub id that is cached.*allow_network=true"
        ):
            load_stable_diffusion(name, revision=revision)
        with pytest.raises(ValueError, match="neither a folder nor a Hub id that is cached"):
            load_text_encoder(name, revision=revision)


@pytest.mark.parametrize("allow_network", [False, True])
@pytest.mark.parametrize(
    "name", [f"stabilityai/stable-diffusion-2{end}" for end in ("", "-base", "-1", "-1-base")]
)
def test_mirrors_of_withdrawn_models_are_named(cached, monkeypatch, name, allow_network) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError("401 Client Error")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    mirror = name.replace("stabilityai", "sd2-community")
    for load in (load_stable_diffusion, load_text_encoder):
        with pytest.raises(ValueError, match=f"withdrew it; mirrors of others: {mirror}[,)]") as caught:
            load(name, allow_network=allow_network)
        assert "\n" not in str(caught.value)


def test_a_snapshot_is_checked_as_any_folder(cached) -> None:
    (cached / "unet/adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter_config.json is refused"):
        load_stable_diffusion(NAME)


def test_only_needed_files_are_downloaded() -> None:
    plain = [
        path.relative_to(valid("prior")).as_posix() for path in valid("prior").rglob("*") if path.is_file()
    ]
    others = [
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "v1-5-pruned.ckpt",
        "unet/evil.py",
    ]
    assert sorted(wanted_files([*plain, *others])) == sorted(plain)
    half = {name for name in wanted_files([*plain, *others], "fp16") if name.endswith("safetensors")}
    assert half == set(others[1:4])


@pytest.mark.parametrize(
    "path", ["x" * 5000, "a\0b", "/etc/hostname", "./none", "checkpoints/none", "a/b/c", ""]
)
def test_paths_that_are_no_folder(path, cached) -> None:
    with pytest.raises(ValueError, match="does not exist|not a folder"):
        local_folder(path)


def test_a_network_error_is_one_sentence(monkeypatch) -> None:
    import huggingface_hub

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(no route\)"):
        load_stable_diffusion(NAME, allow_network=True)
