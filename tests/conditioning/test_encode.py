"""Encoding a corpus gives the same bytes for any number of processes, despite kills and full disks."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from amortized.conditioning.shards import ShardStore
from tests.conditioning.encoding import contents, encoded
from tests.conditioning.letter_encoder import LetterEncoder, ListCorpus, numbered

# ---- reproducible bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, world_size: int):
    one = encoded(tmp_path / "one")
    assert contents(encoded(tmp_path / "many", world_size=world_size)) == contents(one)


def test_encoding_again_changes_nothing(tmp_path: Path):
    before = contents(encoded(tmp_path))
    encoder = LetterEncoder()
    assert contents(encoded(tmp_path, encoder=encoder)) == before
    assert len(encoder.calls) == 1  # the probe only: no prompt is encoded twice


def test_killed_ten_times_and_resumed_the_bytes_are_the_same(tmp_path: Path):
    expected = contents(encoded(tmp_path / "whole", numbered(120)))
    context, random, killed = multiprocessing.get_context("fork"), Random(0), 0
    folder = tmp_path / "killed"
    for _ in range(200):
        work = context.Process(target=encoded, args=(folder, numbered(120), LetterEncoder(delay=5e-3)))
        work.start()
        time.sleep(random.uniform(0.03, 0.15))
        if killed < 10 and work.is_alive():
            os.kill(work.pid, signal.SIGKILL)
            killed += 1
        work.join()
        if work.exitcode == 0:
            break
    assert killed == 10 and contents(folder) == expected


def test_shards_contain_no_timestamp_or_owner(tmp_path: Path):
    """So equal contents have equal digests on every machine."""
    folder = encoded(tmp_path)
    for path in folder.glob("shards/*.tar"):
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sidecar["sha256"]
        assert os.fsencode(os.environ.get("USER", "root") + "\0") not in path.read_bytes()


def test_truncated_texts_are_listed(tmp_path: Path):
    long = "a prompt of very many words"
    folder = encoded(tmp_path, ListCorpus(["short", long]), suffixes=(", viewed from very far behind",))
    listed = (folder / "overlong.txt").read_text().splitlines()
    assert listed == ["short, viewed from very far behind", long, long + ", viewed from very far behind"]
    assert ShardStore(str(folder)).manifest.overlong == 3


def test_bytes_per_prompt_estimates_the_size(tmp_path: Path):
    for how in ({}, {"pooled_only": True}, {"suffixes": (), "dtype": "float32"}):
        folder = encoded(tmp_path / str(len(str(how))), numbered(200), prompts_per_shard=100, **how)
        manifest = ShardStore(str(folder)).manifest
        assert manifest.num_bytes == sum(path.stat().st_size for path in folder.glob("shards/*.tar"))
        assert manifest.bytes_per_prompt * 200 == pytest.approx(manifest.num_bytes, rel=0.3)


# ---- full disks ------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path):
    expected = contents(encoded(tmp_path / "expected"))

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # smaller than a shard
        try:
            encoded(tmp_path / "full")
        except OSError:
            os._exit(7)

    work = multiprocessing.get_context("fork").Process(target=fill)
    work.start()
    work.join()
    assert work.exitcode == 7
    assert set(contents(tmp_path / "full")) == {"plan.json"}
    assert contents(encoded(tmp_path / "full")) == expected


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(ValueError, match="GiB more and has 0.0 GiB free; free some space"):
        encoded(tmp_path)


# ---- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Arguments of `amortized corpora` that encode 40 prompts with a tiny prior's text encoder."""
    from tests.tiny_sd import make_tiny_sd

    folder = tmp_path_factory.mktemp("command")
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a prompt of number {number}\n" for number in range(40)))
    prior = make_tiny_sd(folder / "prior")
    return ["encode", str(prompts), "--encoder", str(prior), "--prompts-per-shard", "8", "--device", "cpu"]


def test_the_command_reports_a_full_disk_in_one_sentence(tmp_path: Path, arguments, capfd):
    from corpora.__main__ import main

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        os._exit(main([*arguments, "--output", str(tmp_path / "full")]))

    work = multiprocessing.get_context("fork").Process(target=fill)
    work.start()
    work.join()
    assert work.exitcode == 2 and set(contents(tmp_path / "full")) == {"plan.json"}
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("python -m corpora: error: ") and "File too large" in last
    assert last.endswith("finished shards are safe: run the same command again to resume")
    assert main([*arguments, "--output", str(tmp_path / "full")]) == 0


@pytest.mark.slow
def test_the_command_killed_ten_times_and_resumed_writes_the_same_bytes(tmp_path: Path, arguments):
    def start_command(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "corpora", *arguments, "--output", str(folder), "--batch-size", "4"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    start = time.monotonic()
    assert start_command(tmp_path / "whole").wait() == 0
    duration, random, killed = time.monotonic() - start, Random(1), 0
    for _ in range(60):
        work = start_command(tmp_path / "killed")
        time.sleep(duration * random.uniform(0.5, 1.0))
        if killed < 10 and work.poll() is None:
            work.kill()
            killed += 1
        if work.wait() == 0 and killed == 10:
            break
        if (tmp_path / "killed/manifest.json").exists():  # it finished before the kill: start over
            shutil.rmtree(tmp_path / "killed")
    assert killed == 10 and contents(tmp_path / "killed") == contents(tmp_path / "whole")


# ---- refused folders -------------------------------------------------------------------------------


def test_another_encoding_in_the_folder_is_refused(tmp_path: Path):
    encoded(tmp_path)
    for how, problem in (
        (
            {"encoder": LetterEncoder(seed=1)},
            "was started with the encoder letters, not letters: choose another",
        ),
        ({"corpus": numbered(22)}, "was started with corpus_digest .*: choose another --output"),
        ({"dtype": "float16"}, "was started with dtype bfloat16, not float16"),
        ({"suffixes": ()}, "was started with suffixes"),
    ):
        with pytest.raises(ValueError, match=problem):
            encoded(tmp_path, **how)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(ValueError, match="holds manifest.json but no plan.json: choose another"):
        encoded(tmp_path)
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, got 'int8'"):
        encoded(tmp_path / "new", dtype="int8")
    with pytest.raises(ValueError, match="a shard must hold at least 1 prompt, got 0"):
        encoded(tmp_path / "new", prompts_per_shard=0)


def test_a_damaged_plan_is_refused(tmp_path: Path):
    folder = encoded(tmp_path)
    for data in (b"", b"{}", b"7", b"[]", b'{"probe": 7}'):
        (folder / "plan.json").write_bytes(data)
        with pytest.raises(ValueError, match="plan.json is damaged|choose another"):
            encoded(folder)


def test_duplicate_prompts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="two prompts have the same key"):
        encoded(tmp_path, ListCorpus(["a cube", "a cone", "a cube"]))
