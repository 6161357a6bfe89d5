"""Rows read from shards equal the encoded rows; damage is detected and repaired."""

from __future__ import annotations

import shlex
from pathlib import Path
from random import Random

import fsspec
import pytest
import torch

from amortized.conditioning.encode import plan_encoding
from amortized.conditioning.encoder_identity import is_same_encoder, probe_vector
from amortized.conditioning.shard_format import DTYPES
from amortized.conditioning.shards import ShardStore
from tests.conditioning.encoding import PARTS, VIEWS, contents, encoded
from tests.conditioning.letter_encoder import LENGTH, WIDTH, LetterEncoder, numbered

# ---- reading ---------------------------------------------------------------------------------------


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


# ---- damage ----------------------------------------------------------------------------------------


def test_an_unfinished_folder_is_refused(tmp_path: Path):
    folder = encoded(tmp_path)
    for name in ("manifest.json", "keys.npy"):
        original = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"no finished encoding .no {name}.*amortized encode"):
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


def test_the_repair_command_in_the_message_works(tmp_path: Path):
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
