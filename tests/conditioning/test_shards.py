"""Encoded corpora on disk: what is read is what was encoded, whatever happened meanwhile."""

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
from amortized.conditioning.shards import DTYPES, ShardStore, probe_of, same_encoder
from tests.conditioning.words import LENGTH, WIDTH, LetterEncoder, Listed, numbered

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


# ---- what comes back --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_as_they_were_encoded(tmp_path: Path, dtype: str):
    encoder, corpus = LetterEncoder(), numbered(23)
    store = ShardStore(str(encoded(tmp_path, corpus, encoder, dtype=dtype)))
    texts = [corpus[index].text for index in (22, 0, 7, 7)]
    found = store.find([*texts, "another"])
    assert found.pop() is None
    for text, condition in zip(texts, found, strict=True):
        assert condition is not None
        expected = encoder.encode([text, *(text + suffix for suffix in VIEWS)])
        rounded = expected.tokens.to(DTYPES[dtype]).float()
        assert condition.tokens.dtype == condition.pooled.dtype == torch.float32
        assert torch.equal(condition.tokens, rounded) and torch.equal(condition.mask, expected.mask)
        assert torch.equal(condition.pooled, expected.pooled.to(DTYPES[dtype]).float())
    assert [store.row_of(suffix) for suffix in ("", *VIEWS)] == [0, 1, 2]
    assert store.has(", back view") and not store.has(", side view")


def test_pooled_vectors_alone(tmp_path: Path):
    folder = encoded(tmp_path, pooled_only=True, suffixes=(), dtype="float32")
    [found] = ShardStore(str(folder)).find(["prompt number 3"])
    assert found is not None and found.tokens.shape == (1, 0, WIDTH) and found.mask.shape == (1, 0)
    assert torch.equal(found.pooled, LetterEncoder().encode(["prompt number 3"]).pooled)


def test_webdataset_reads_them(tmp_path: Path):
    import webdataset
    from safetensors.torch import load

    folder = encoded(tmp_path)
    shards = sorted(str(path) for path in folder.glob("shards/*.tar"))
    assert len(shards) == 5
    seen = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["txt"].decode() for sample in seen] == [numbered(23)[index].text for index in range(23)]
    assert load(seen[3]["safetensors"])["tokens"].shape == (3, LENGTH, WIDTH)


def test_a_url_is_read_as_a_folder_is(tmp_path: Path):
    folder, texts = encoded(tmp_path), ["prompt number 22", "prompt number 1"]
    far = fsspec.filesystem("memory")
    for name, data in contents(folder).items():
        far.pipe_file(f"/text/{name}", data)
    near, there = ShardStore(str(folder)).find(texts), ShardStore("memory://text").find(texts)
    for one, other in zip(near, there, strict=True):
        assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


def test_prompts_that_are_cut_are_listed(tmp_path: Path):
    long = "a prompt of very many words"
    folder = encoded(tmp_path, Listed(["short", long]), suffixes=(", seen from far behind",))
    told = (folder / "overlong.txt").read_text().splitlines()
    assert told == ["short, seen from far behind", long, long + ", seen from far behind"]
    assert ShardStore(str(folder)).manifest.overlong == 3


def test_the_size_that_is_told_first(tmp_path: Path):
    for how in ({}, {"pooled_only": True}, {"suffixes": (), "dtype": "float32"}):
        folder = encoded(tmp_path / str(len(str(how))), numbered(200), prompts_per_shard=100, **how)
        manifest = ShardStore(str(folder)).manifest
        assert manifest.num_bytes == sum(path.stat().st_size for path in folder.glob("shards/*.tar"))
        assert manifest.bytes_per_prompt * 200 == pytest.approx(manifest.num_bytes, rel=0.3)


# ---- the same bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, world_size: int):
    one = encoded(tmp_path / "one")
    assert contents(encoded(tmp_path / "many", world_size=world_size)) == contents(one)


def test_encoding_again_changes_nothing(tmp_path: Path):
    before = contents(encoded(tmp_path))
    encoder = LetterEncoder()
    assert contents(encoded(tmp_path, encoder=encoder)) == before
    assert len(encoder.calls) == 1  # the probe: no prompt is encoded twice


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
    whole = contents(encoded(tmp_path / "whole"))

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # a shard is larger
        try:
            encoded(tmp_path / "full")
        except OSError:
            os._exit(7)

    work = multiprocessing.get_context("fork").Process(target=fill)
    work.start()
    work.join()
    assert work.exitcode == 7
    assert set(contents(tmp_path / "full")) == {"plan.json"}
    assert contents(encoded(tmp_path / "full")) == whole


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[str]:
    """Arguments that encode 40 sentences by a tiny prior's encoder."""
    from tests.tiny_sd import make_tiny_sd

    folder = tmp_path_factory.mktemp("command")
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a prompt of number {number}\n" for number in range(40)))
    prior = make_tiny_sd(folder / "prior")
    return ["encode", str(prompts), "--encoder", str(prior), "--prompts-per-shard", "8", "--device", "cpu"]


def test_the_command_tells_of_a_full_disk_in_one_sentence(tmp_path: Path, told, capfd):
    from corpora.__main__ import main

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        os._exit(main([*told, "--output", str(tmp_path / "full")]))

    work = multiprocessing.get_context("fork").Process(target=fill)
    work.start()
    work.join()
    assert work.exitcode == 2 and set(contents(tmp_path / "full")) == {"plan.json"}
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("corpora: error: ") and "File too large" in last
    assert last.endswith("finished shards are safe: run the same command again to resume")
    assert main([*told, "--output", str(tmp_path / "full")]) == 0


@pytest.mark.slow
def test_the_command_killed_ten_times_and_resumed_writes_the_same_bytes(tmp_path: Path, told):
    def begun(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "corpora", *told, "--output", str(folder), "--batch-size", "4"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    start = time.monotonic()
    assert begun(tmp_path / "whole").wait() == 0
    lasts, random, killed = time.monotonic() - start, Random(1), 0
    for _ in range(60):
        work = begun(tmp_path / "killed")
        time.sleep(lasts * random.uniform(0.5, 1.0))
        if killed < 10 and work.poll() is None:
            work.kill()
            killed += 1
        if work.wait() == 0 and killed == 10:
            break
        if (tmp_path / "killed/manifest.json").exists():  # it was too fast: begin anew
            shutil.rmtree(tmp_path / "killed")
    assert killed == 10 and contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_told_first(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(ValueError, match="still to be written and 0.0 GiB free; make room"):
        encoded(tmp_path)


# ---- what does not fit ------------------------------------------------------------------------


def test_another_encoding_in_the_folder_is_refused(tmp_path: Path):
    encoded(tmp_path)
    for how, problem in (
        ({"encoder": LetterEncoder(seed=1)}, "is of the encoder letters, not of letters: choose another"),
        ({"corpus": numbered(22)}, "was begun with corpus_digest .*: choose another --output"),
        ({"dtype": "float16"}, "was begun with dtype bfloat16, not float16"),
        ({"suffixes": ()}, "was begun with suffixes"),
    ):
        with pytest.raises(ValueError, match=problem):
            encoded(tmp_path, **how)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(ValueError, match="holds shards, but not how they were made"):
        encoded(tmp_path)
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, got 'int8'"):
        encoded(tmp_path / "new", dtype="int8")
    with pytest.raises(ValueError, match="a shard must hold at least 1 prompt, got 0"):
        encoded(tmp_path / "new", prompts_per_shard=0)


def test_an_unfinished_folder_is_told(tmp_path: Path):
    folder = encoded(tmp_path)
    for name in ("manifest.json", "keys.npy"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"no finished encoding .no {name}.*python -m corpora encode"):
            ShardStore(str(folder))
        (folder / name).write_bytes(kept)
    shard = folder / "shards/000003.tar"
    for data in (None, shard.read_bytes()[:-512]):
        shard.unlink() if data is None else shard.write_bytes(data)
        with pytest.raises(ValueError, match="1 of 5 shards are missing .*first shards/000003.tar: copy"):
            ShardStore(str(folder))
    with pytest.raises(ValueError, match="no finished encoding"):
        ShardStore(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="nowhere"):
        ShardStore("nowhere://text")


def test_two_prompts_of_one_key_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="two prompts have the same key"):
        encoded(tmp_path, Listed(["a cube", "a cone", "a cube"]))


def test_weights_tell_encoders_apart_and_at_another_precision_probes(tmp_path: Path):
    """One swapped pair of words is another encoder, though the probe, which lacks them, is the same."""
    from amortized.conditioning import load_text_encoder
    from tests.tiny_sd import make_tiny_sd

    folder = make_tiny_sd(tmp_path)
    one, again = load_text_encoder(str(folder)), load_text_encoder(str(folder))
    half = load_text_encoder(str(folder), dtype=torch.bfloat16)
    plan = plan_encoding(numbered(3), one, name="one")

    def same(encoder) -> bool:
        return same_encoder(plan, encoder.fingerprint(), probe_of(encoder))

    assert same(again) and same(half) and one.fingerprint().startswith("float32 ")
    table = again.model.get_input_embeddings().weight.data
    words = [again.tokenizer.get_vocab()[word] for word in ("q</w>", "z</w>")]
    table[words] = table[words[::-1]].clone()
    assert not same(again) and probe_of(again) == probe_of(one)
    assert not same(load_text_encoder(str(make_tiny_sd(tmp_path / "other", seed=3)), dtype=torch.bfloat16))
    assert not same_encoder(plan, half.fingerprint(), plan.probe[:16])


# ---- damage -----------------------------------------------------------------------------------


def damage(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    kind = random.randrange(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
    if kind == 2:
        return data[:place] + random.randbytes(random.randint(1, 600)) + data[place:]
    return random.randbytes(len(data))


def test_two_hundred_damaged_folders_lose_nothing(tmp_path: Path):
    folder, corpus, random = encoded(tmp_path), numbered(23), Random(11)
    whole = contents(folder)
    texts = [corpus[index].text for index in range(23)]
    good = ShardStore(str(folder)).find(texts)
    names = [*sorted(name for name in whole if "shards/" in name), "keys.npy", "places.npy", "manifest.json"]
    told = 0
    for number in range(200):
        name = names[number % len(names)]
        data = damage(whole[name], random)
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
                    [found] = store.find([text])
                except ValueError as error:
                    problems.add(str(error))
                    assert text in str(error) and "rebuild this shard alone" in str(error)
                else:
                    assert all(torch.equal(getattr(found, part), getattr(expected, part)) for part in PARTS)
        told += bool(problems)
        shard = name.removesuffix(".json") + ".tar" if "shards/" in name and name.endswith(".json") else name
        assert all(
            str(folder) in problem and (shard in problem or "shards/" not in name) for problem in problems
        )
        if name == "manifest.json":
            (folder / name).unlink(missing_ok=True)  # as the sentence says
        times = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*.tar")}
        encoded(folder, verify=True)
        assert contents(folder) == whole
        changed = {
            str(path.relative_to(folder)) for path, at in times.items() if path.stat().st_mtime_ns != at
        }
        assert changed <= {shard}  # only what was damaged is made anew
    assert told > 80  # not every byte of a tar matters, nor does a side file to a reader


def test_a_damaged_plan_is_told(tmp_path: Path):
    folder = encoded(tmp_path)
    for data in (b"", b"{}", b"7", b"[]", b'{"probe": 7}'):
        (folder / "plan.json").write_bytes(data)
        with pytest.raises(ValueError, match="plan.json is damaged|choose another"):
            encoded(folder)


def test_the_command_that_mends_is_the_one_that_made(tmp_path: Path):
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
    whole = contents(folder)
    (folder / "shards/000001.tar").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="--verify") as error:
        ShardStore(str(folder)).find(["a ball"])
    command = shlex.split(str(error.value).partition(" alone with ")[2])
    assert command[:3] == ["python", "-m", "corpora"]
    assert main([*command[3:], "--device", "cpu"]) == 0
    assert contents(folder) == whole


def test_shards_hold_nothing_of_the_machine(tmp_path: Path):
    """Neither time nor owner: the digest of a folder is the digest of what it says."""
    folder = encoded(tmp_path)
    for path in folder.glob("shards/*.tar"):
        facts = json.loads(path.with_suffix(".json").read_text())
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"]
        assert os.fsencode(os.environ.get("USER", "root") + "\0") not in path.read_bytes()
