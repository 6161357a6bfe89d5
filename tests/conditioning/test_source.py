"""Where rows come from: memory, shards, the encoder; and banks that read shards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from amortized.cameras import orbit
from amortized.conditioning import ShardStore, TextBank, TextConfig, ViewTextConfig
from amortized.conditioning.source import SentenceSource
from tests.conditioning.test_shards import encoded
from tests.conditioning.words import WIDTH, LetterEncoder, numbered

SUFFIXES = ViewTextConfig().suffixes
CAMERAS = orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40)
TEXTS = ["prompt number 3", "prompt number 17"]
PARTS = ("pooled", "tokens", "mask")


def stored(folder: Path, **how) -> ShardStore:
    return ShardStore(str(encoded(folder, **{"suffixes": SUFFIXES, "dtype": "float32", **how})))


def equal(one, other) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


# ---- sources ----------------------------------------------------------------------------------


def test_shards_are_asked_before_the_encoder(tmp_path: Path):
    encoder = LetterEncoder()
    source = SentenceSource(encoder, [stored(tmp_path)])
    encoder.calls.clear()
    rows = source.rows([(TEXTS[1], ""), (TEXTS[0], ", side view"), (TEXTS[1], "")])
    assert encoder.calls == [] and source.num_encoded == 0
    assert equal(rows, LetterEncoder().encode([TEXTS[1], f"{TEXTS[0]}, side view", TEXTS[1]]))
    rows = source.rows([(TEXTS[0], " az30"), ("another", ""), (TEXTS[0], "")])
    assert encoder.calls == [[f"{TEXTS[0]} az30"], ["another"]] and source.num_encoded == 2
    assert equal(rows, LetterEncoder().encode([f"{TEXTS[0]} az30", "another", TEXTS[0]]))


def test_several_stores_complete_each_other(tmp_path: Path):
    encoder = LetterEncoder()
    few = stored(tmp_path / "few", corpus=numbered(4))
    many = stored(tmp_path / "many", suffixes=())
    source = SentenceSource(encoder, [few, many])
    encoder.calls.clear()
    source.rows([(TEXTS[0], ", back view"), (TEXTS[1], "")])
    assert encoder.calls == []
    source.rows([(TEXTS[1], ", back view")])
    assert encoder.calls == [[f"{TEXTS[1]}, back view"]]


def test_memory_keeps_what_was_used_last():
    encoder = LetterEncoder()
    source = SentenceSource(encoder, kept=3)
    for text in ("a", "b", "c", "a", "d"):  # a was used after b
        source.rows([(text, "")])
    assert len(source) == 3 and [call for [call] in encoder.calls] == ["a", "b", "c", "d"]
    source.rows([("a", ""), ("c", ""), ("d", "")])
    assert len(encoder.calls) == 4
    source.rows([("b", "")])
    assert encoder.calls[4:] == [["b"]]
    rows = source.rows([(letter, "") for letter in "vwxyz"])  # more than are kept
    assert len(source) == 3 and equal(rows, LetterEncoder().encode(list("vwxyz")))


def test_two_threads_get_the_same(tmp_path: Path):
    source = SentenceSource(LetterEncoder(delay=1e-4), [stored(tmp_path)], kept=5)
    texts = [f"prompt number {index % 30}" for index in range(300)]  # some are in no shard
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: source.rows([(text, "")]), texts))
    expected = LetterEncoder()
    assert all(equal(row, expected.encode([text])) for row, text in zip(rows, texts, strict=True))


def test_a_step_reads_each_prompt_once(tmp_path: Path, monkeypatch):
    bank = TextBank(LetterEncoder(), stores=[store := stored(tmp_path)])
    read, reads = store._read, []
    monkeypatch.setattr(store, "_read", lambda places: reads.extend(places) or read(places))
    bank.get(TEXTS)
    bank.views(TEXTS, CAMERAS)
    assert len(reads) == 2
    for number in range(30):  # and no more than some are kept
        bank.get([f"prompt number {number}"] * 2)
    assert len(reads) == 2 + 21


# ---- banks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_bank_of_shards_hands_out_what_the_encoder_says(tmp_path: Path, perp_neg: bool):
    config = ViewTextConfig(perp_neg=perp_neg, negative_prompt="ugly")
    online = TextBank(LetterEncoder(), config)
    bank = TextBank(LetterEncoder(), config, stores=[stored(tmp_path)])
    assert equal(bank.get(TEXTS), online.get(TEXTS))
    one, other = bank.views(TEXTS, CAMERAS), online.views(TEXTS, CAMERAS)
    assert equal(one.positive, other.positive) and equal(one.unconditional, other.unconditional)
    assert all(equal(a, b) for a, b in zip(one.negatives, other.negatives, strict=True))
    assert bank.told.num_encoded == 2  # the negative prompt and the empty one


def test_a_generator_may_read_another_encoder(tmp_path: Path):
    told, read = LetterEncoder(), LetterEncoder(seed=1)
    stores = [stored(tmp_path / "told"), stored(tmp_path / "read", encoder=read, suffixes=())]
    bank = TextBank(told, reader=read, stores=stores)
    assert equal(bank.get(TEXTS), LetterEncoder(seed=1).encode(TEXTS))
    assert equal(bank.sentences(TEXTS), LetterEncoder().encode(TEXTS))
    assert bank.told.stores == stores[:1] and bank.read.stores == stores[1:]
    assert bank.told.num_encoded == bank.read.num_encoded == len(bank) == 0


def test_pooled_shards_serve_the_generator_alone(tmp_path: Path):
    bank = TextBank(LetterEncoder(), stores=[stored(tmp_path, pooled_only=True, suffixes=())])
    assert bank.pooled_only and not TextBank(LetterEncoder()).pooled_only
    found = bank.get([*TEXTS, "a prompt that no shard has"])
    assert found.tokens.shape == (3, 0, WIDTH) and found.mask.shape == (3, 0)
    assert torch.equal(found.pooled[2], LetterEncoder().encode(["a prompt that no shard has"]).pooled[0])
    assert bank.sentences(TEXTS).tokens.shape == (2, LetterEncoder.max_length, WIDTH)
    assert torch.equal(bank.get(TEXTS).pooled, bank.sentences(TEXTS).pooled)
    assert all(row.tokens.untyped_storage().nbytes() == 0 for row in bank.read._memory.values())


def test_shards_of_another_encoder_are_refused(tmp_path: Path):
    store = stored(tmp_path, encoder=LetterEncoder(seed=5))
    told, read = LetterEncoder(), LetterEncoder(seed=6)
    told.name, read.name = "sd at abc", "t5"
    with pytest.raises(ValueError, match="of the encoder letters, not of the prior's sd at abc; encode"):
        TextBank(told, stores=[store])
    with pytest.raises(ValueError, match="of the encoder letters, not of the prior's sd at abc or the gen"):
        TextBank(told, reader=read, stores=[store])


def test_what_shards_lack_is_told(tmp_path: Path):
    whole, plain = stored(tmp_path / "whole"), stored(tmp_path / "plain", suffixes=())
    assert TextBank(LetterEncoder()).shortage(TEXTS) is None  # nothing is in shards, and need not be
    assert TextBank(LetterEncoder(), stores=[whole]).shortage(TEXTS) is None
    told = TextBank(LetterEncoder(), stores=[plain]).shortage(TEXTS)
    assert told is not None and told.startswith("text.shards lack 100% of their views' sentences: these are")
    told = TextBank(LetterEncoder(), stores=[whole]).shortage([*TEXTS, "no shard has this", "nor this"])
    assert told is not None and told.startswith("text.shards lack 50% of the prompts and 50% of their views'")
    numbered = ViewTextConfig(direction_step_deg=10)
    assert TextBank(LetterEncoder(), numbered, stores=[plain]).shortage(TEXTS) is None
    pooled = stored(tmp_path / "pooled", pooled_only=True, suffixes=())
    assert TextBank(LetterEncoder(), numbered, stores=[pooled]).shortage(TEXTS) is None


def test_settings():
    with pytest.raises(ValueError, match="text.cache_size must be at least 1, got 0"):
        TextConfig(kept=0)
