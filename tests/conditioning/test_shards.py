"""Encoded corpora on disk: rows read back equal rows encoded, despite kills, full disks and damage."""

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

import fsspec
import pytest
import torch

from amortized.conditioning.encode import encode_shards, finish_encoding, plan_encoding, start_encoding
from amortized.conditioning.encoder_identity import is_same_encoder, probe_vector
from amortized.conditioning.shard_format import DTYPES
from amortized.conditioning.shards import ShardStore
from tests.conditioning.letter_encoder import LENGTH, WIDTH, LetterEncoder, ListCorpus, numbered

VIEWS = (", front view", ", back view")
PARTS = ("pooled", "tokens", "mask")


def encoded(folder: Path, corpus=None, encoder=None, *, world_size: int = 1, verify=False, **how) -> Path:
    corpus, encoder = corpus or numbered(23), encoder or LetterEncoder()
    plan = plan_encoding(
        corpus, encoder, name="letters", **{"prompts_per_shard": 5, "batch_size": 7, "suffixes": VIEWS, **how}
    )
    start_encoding(folder, plan)
    for rank in range(world_size):
        encode_shards(folder, plan, corpus, encoder, rank=rank, world_size=world_size, verify=verify)
    finish_encoding(folder, plan)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- reading --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_round_trip(tmp_path: Path, dtype: str):
    encoder, corpus = LetterEncoder(), numbered(23)
    store = ShardStore(str(encoded(tmp_path, corpus, encoder, dtype=dtype)))
    texts = [corpus[index].text for index in (22, 0, 7, 7)]
    conditions = store.read([*texts, "another"])
    assert conditions.pop() is None
    for text, condition in zip(texts, conditions, strict=True):
        assert condition is not None
        expected = encoder.encode([text, *(text + suffix for suffix in VIEWS)])
        rounded = expected.tokens.to(DTYPES[dtype]).float()
        assert condition.tokens.dtype == condition.pooled.dtype == torch.float32
        assert torch.equal(condition.tokens, rounded) and torch.equal(condition.mask, expected.mask)
        assert torch.equal(condition.pooled, expected.pooled.to(DTYPES[dtype]).float())
    assert [store.row_of(suffix) for suffix in ("", *VIEWS)] == [0, 1, 2]
    assert store.has_suffix(", back view") and not store.has_suffix(", side view")


def test_pooled_vectors_only(tmp_path: Path):
    folder = encoded(tmp_path, pooled_only=True, suffixes=(), dtype="float32")
    [condition] = ShardStore(str(folder)).read(["prompt number 3"])
    assert condition is not None
    assert condition.tokens.shape == (1, 0, WIDTH) and condition.mask.shape == (1, 0)
    assert torch.equal(condition.pooled, LetterEncoder().encode(["prompt number 3"]).pooled)


def test_webdataset_reads_the_shards(tmp_path: Path):
    import webdataset
    from safetensors.torch import load

    folder = encoded(tmp_path)
    shards = sorted(str(path) for path in folder.glob("shards/*.tar"))
    assert len(shards) == 5
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["txt"].decode() for sample in samples] == [numbered(23)[index].text for index in range(23)]
    assert load(samples[3]["safetensors"])["tokens"].shape == (3, LENGTH, WIDTH)


def test_a_url_reads_like_a_folder(tmp_path: Path):
    folder, texts = encoded(tmp_path), ["prompt number 22", "prompt number 1"]
    memory = fsspec.filesystem("memory")
    for name, data in contents(folder).items():
        memory.pipe_file(f"/text/{name}", data)
    local, remote = ShardStore(str(folder)).read(texts), ShardStore("memory://text").read(texts)
    for one, other in zip(local, remote, strict=True):
        assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


def test_truncated_texts_are_listed(tmp_path: Path):
    long = "a prompt of very many words"
    folder = encoded(tmp_path, ListCorpus(["short", long]), suffixes=(", viewed from far behind",))
    listed = (folder / "overlong.txt").read_text().splitlines()
    assert listed == ["short, viewed from far behind", long, long + ", viewed from far behind"]
    assert ShardStore(str(folder)).manifest.overlong == 3


def test_bytes_per_prompt_estimates_the_size(tmp_path: Path):
    for how in ({}, {"pooled_only": True}, {"suffixes": (), "dtype": "float32"}):
        folder = encoded(tmp_path / str(len(str(how))), numbered(200), prompts_per_shard=100, **how)
        manifest = ShardStore(str(folder)).manifest
        assert manifest.num_bytes == sum(path.stat().st_size for path in folder.glob("shards/*.tar"))
        assert manifest.bytes_per_prompt * 200 == pytest.approx(manifest.num_bytes, rel=0.3)


# ---- reproducible bytes ---------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Arguments of `python -m corpora` that encode 40 prompts with a tiny prior's text encoder."""
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
    assert last.startswith("corpora: error: ") and "File too large" in last
    assert last.endswith("what is finished is kept: run the same command again")
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


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(ValueError, match="GiB more and has 0.0 GiB free; free some space"):
        encoded(tmp_path)


# ---- refused folders ------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="holds shards but no plan.json: choose another"):
        encoded(tmp_path)
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, got 'int8'"):
        encoded(tmp_path / "new", dtype="int8")
    with pytest.raises(ValueError, match="a shard must hold at least 1 prompt, got 0"):
        encoded(tmp_path / "new", prompts_per_shard=0)


def test_an_unfinished_folder_is_refused(tmp_path: Path):
    folder = encoded(tmp_path)
    for name in ("manifest.json", "keys.npy"):
        original = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"no finished encoding .no {name}.*python -m corpora encode"):
            ShardStore(str(folder))
        (folder / name).write_bytes(original)
    shard = folder / "shards/000003.tar"
    for data in (None, shard.read_bytes()[:-512]):
        shard.unlink() if data is None else shard.write_bytes(data)
        with pytest.raises(ValueError, match="1 of 5 shards are missing .*first shards/000003.tar: copy"):
            ShardStore(str(folder))
    with pytest.raises(ValueError, match="no finished encoding"):
        ShardStore(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="nowhere"):
        ShardStore("nowhere://text")


def test_duplicate_prompts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="two prompts have the same key"):
        encoded(tmp_path, ListCorpus(["a cube", "a cone", "a cube"]))


def test_encoders_are_compared_by_weights_or_across_precisions_by_probe(tmp_path: Path):
    """Swapping two word embeddings makes another encoder, although the probe text does not contain them."""
    from amortized.conditioning import load_text_encoder
    from tests.tiny_sd import make_tiny_sd

    folder = make_tiny_sd(tmp_path)
    one, again = load_text_encoder(str(folder)), load_text_encoder(str(folder))
    half = load_text_encoder(str(folder), dtype=torch.bfloat16)
    plan = plan_encoding(numbered(3), one, name="one")

    def matches(encoder) -> bool:
        return is_same_encoder(plan, encoder.fingerprint(), probe_vector(encoder))

    assert matches(again) and matches(half) and one.fingerprint().startswith("float32 ")
    table = again.model.get_input_embeddings().weight.data
    words = [again.tokenizer.get_vocab()[word] for word in ("q</w>", "z</w>")]
    table[words] = table[words[::-1]].clone()
    assert not matches(again) and probe_vector(again) == probe_vector(one)
    assert not matches(load_text_encoder(str(make_tiny_sd(tmp_path / "other", seed=3)), dtype=torch.bfloat16))
    assert not is_same_encoder(plan, half.fingerprint(), plan.probe[:16])


# ---- damage -----------------------------------------------------------------------------------


def damage(data: bytes, random: Random) -> bytes:
    offset = random.randrange(len(data))
    kind = random.randrange(4)
    if kind == 0:
        return data[:offset]
    if kind == 1:
        return data[:offset] + bytes([data[offset] ^ 1 << random.randrange(8)]) + data[offset + 1 :]
    if kind == 2:
        return data[:offset] + random.randbytes(random.randint(1, 600)) + data[offset:]
    return random.randbytes(len(data))


def test_two_hundred_damaged_folders_are_detected_and_repaired(tmp_path: Path):
    folder, corpus, random = encoded(tmp_path), numbered(23), Random(11)
    original = contents(folder)
    texts = [corpus[index].text for index in range(23)]
    good = ShardStore(str(folder)).read(texts)
    names = [
        *sorted(name for name in original if "shards/" in name),
        "keys.npy",
        "places.npy",
        "manifest.json",
    ]
    detected = 0
    for number in range(200):
        name = names[number % len(names)]
        data = damage(original[name], random)
        if number % 17 == 16:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)
        problems = set()
        try:
            store = ShardStore(str(folder))
        except ValueError as error:
            problems.add(str(error))
        else:
            for text, expected in zip(texts, good, strict=True):
                try:
                    [condition] = store.read([text])
                except ValueError as error:
                    problems.add(str(error))
                    assert text in str(error) and "rebuild this shard alone" in str(error)
                else:
                    assert all(
                        torch.equal(getattr(condition, part), getattr(expected, part)) for part in PARTS
                    )
        detected += bool(problems)
        shard = name.removesuffix(".json") + ".tar" if "shards/" in name and name.endswith(".json") else name
        assert all(
            str(folder) in problem and (shard in problem or "shards/" not in name) for problem in problems
        )
        if name == "manifest.json":
            (folder / name).unlink(missing_ok=True)  # the remedy that the message names
        times = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*.tar")}
        encoded(folder, verify=True)
        assert contents(folder) == original
        changed = {
            str(path.relative_to(folder)) for path, at in times.items() if path.stat().st_mtime_ns != at
        }
        assert changed <= {shard}  # only the damaged shard is rewritten
    assert detected > 80  # a reader ignores the JSON files and some bytes of a tar


def test_a_damaged_plan_is_refused(tmp_path: Path):
    folder = encoded(tmp_path)
    for data in (b"", b"{}", b"7", b"[]", b'{"probe": 7}'):
        (folder / "plan.json").write_bytes(data)
        with pytest.raises(ValueError, match="plan.json is damaged|choose another"):
            encoded(folder)


def test_the_repair_command_in_the_message_works(tmp_path: Path):
    import shlex

    from corpora.__main__ import main
    from tests.tiny_sd import make_tiny_sd

    prior, prompts, folder = make_tiny_sd(tmp_path / "prior"), tmp_path / "my prompts.txt", tmp_path / "text"
    prompts.write_text("a red cube\na blue cone\na ball\n")
    given = ["encode", str(prompts), "--encoder", str(prior), "--output", str(folder), "--device", "cpu"]
    assert (
        main([*given, "--suffixes", ", from it's back", ", left", "--pooled", "--prompts-per-shard", "2"])
        == 0
    )
    original = contents(folder)
    (folder / "shards/000001.tar").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="--verify") as error:
        ShardStore(str(folder)).read(["a ball"])
    command = shlex.split(str(error.value).partition(" alone with ")[2])
    assert command[:3] == ["python", "-m", "corpora"]
    assert main([*command[3:], "--device", "cpu"]) == 0
    assert contents(folder) == original


def test_shards_contain_no_time_stamp_or_owner(tmp_path: Path):
    """So equal contents have equal digests on every machine."""
    folder = encoded(tmp_path)
    for path in folder.glob("shards/*.tar"):
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sidecar["sha256"]
        assert os.fsencode(os.environ.get("USER", "root") + "\0") not in path.read_bytes()
