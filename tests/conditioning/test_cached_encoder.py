"""Rows come from shards, the cache or the encoder; banks on top of shards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from amortized.cameras import orbit
from amortized.conditioning import ShardStore, TextBank, TextConfig, ViewTextConfig
from amortized.conditioning.cached_encoder import CachedTextEncoder
from tests.conditioning.encoding import encoded
from tests.conditioning.letter_encoder import WIDTH, LetterEncoder, numbered

SUFFIXES = ViewTextConfig().suffixes
CAMERAS = orbit(2, 4, elevation_deg=0, distance=1, fovy_deg=40)
TEXTS = ["prompt number 3", "prompt number 17"]
PARTS = ("pooled", "tokens", "mask")


def stored(folder: Path, **how) -> ShardStore:
    return ShardStore(str(encoded(folder, **{"suffixes": SUFFIXES, "dtype": "float32", **how})))


def equal(one, other) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


# ---- cached encoder ----------------------------------------------------------------------------------


def test_shards_are_read_before_the_encoder_runs(tmp_path: Path):
    encoder = LetterEncoder()
    cached = CachedTextEncoder(encoder, [stored(tmp_path)])
    encoder.calls.clear()
    rows = cached.encode([(TEXTS[1], ""), (TEXTS[0], ", side view"), (TEXTS[1], "")])
    assert encoder.calls == [] and cached.num_encoded == 0
    assert equal(rows, LetterEncoder().encode([TEXTS[1], f"{TEXTS[0]}, side view", TEXTS[1]]))
    rows = cached.encode([(TEXTS[0], " az30"), ("another", ""), (TEXTS[0], "")])
    assert encoder.calls == [[f"{TEXTS[0]} az30"], ["another"]] and cached.num_encoded == 2
    assert equal(rows, LetterEncoder().encode([f"{TEXTS[0]} az30", "another", TEXTS[0]]))


def test_several_stores_complete_each_other(tmp_path: Path):
    encoder = LetterEncoder()
    few = stored(tmp_path / "few", corpus=numbered(4))
    many = stored(tmp_path / "many", suffixes=())
    cached = CachedTextEncoder(encoder, [few, many])
    encoder.calls.clear()
    cached.encode([(TEXTS[0], ", back view"), (TEXTS[1], "")])
    assert encoder.calls == []
    cached.encode([(TEXTS[1], ", back view")])
    assert encoder.calls == [[f"{TEXTS[1]}, back view"]]


def test_the_cache_evicts_the_least_recently_used():
    encoder = LetterEncoder()
    cached = CachedTextEncoder(encoder, cache_size=3)
    for text in ("a", "b", "c", "a", "d"):  # a was used after b
        cached.encode([(text, "")])
    assert len(cached) == 3 and [call for [call] in encoder.calls] == ["a", "b", "c", "d"]
    cached.encode([("a", ""), ("c", ""), ("d", "")])
    assert len(encoder.calls) == 4
    cached.encode([("b", "")])
    assert encoder.calls[4:] == [["b"]]
    rows = cached.encode([(letter, "") for letter in "vwxyz"])  # more than the cache holds
    assert len(cached) == 3 and equal(rows, LetterEncoder().encode(list("vwxyz")))


def test_threads_get_the_same_rows(tmp_path: Path):
    cached = CachedTextEncoder(LetterEncoder(delay=1e-4), [stored(tmp_path)], cache_size=5)
    texts = [f"prompt number {index % 30}" for index in range(300)]  # the last seven are in no shard
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: cached.encode([(text, "")]), texts))
    expected = LetterEncoder()
    assert all(equal(row, expected.encode([text])) for row, text in zip(rows, texts, strict=True))


def test_a_step_reads_each_prompt_once(tmp_path: Path, monkeypatch):
    bank = TextBank(LetterEncoder(), stores=[store := stored(tmp_path)])
    read_entries, reads = store._read_entries, []
    monkeypatch.setattr(
        store, "_read_entries", lambda entries: reads.extend(entries) or read_entries(entries)
    )
    bank.generator_text(TEXTS)
    bank.prior_text(TEXTS, CAMERAS)
    assert len(reads) == 2
    for number in range(30):  # 23 are in the store, of which TEXTS are cached
        bank.generator_text([f"prompt number {number}"] * 2)
    assert len(reads) == 2 + 21


# ---- banks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_bank_with_shards_equals_one_without(tmp_path: Path, perp_neg: bool):
    config = ViewTextConfig(perp_neg=perp_neg, negative_prompt="ugly")
    online = TextBank(LetterEncoder(), config)
    bank = TextBank(LetterEncoder(), config, stores=[stored(tmp_path)])
    assert equal(bank.generator_text(TEXTS), online.generator_text(TEXTS))
    one, other = bank.prior_text(TEXTS, CAMERAS), online.prior_text(TEXTS, CAMERAS)
    assert equal(one.positive, other.positive) and equal(one.unconditional, other.unconditional)
    assert all(equal(a, b) for a, b in zip(one.negatives, other.negatives, strict=True))
    assert bank.prior_encoder.num_encoded == 2  # the negative prompt and the empty text


def test_the_generator_may_have_its_own_encoder(tmp_path: Path):
    prior, generator = LetterEncoder(), LetterEncoder(seed=1)
    stores = [
        stored(tmp_path / "prior"),
        stored(tmp_path / "generator", encoder=generator, suffixes=()),
    ]
    bank = TextBank(prior, generator_encoder=generator, stores=stores)
    assert equal(bank.generator_text(TEXTS), LetterEncoder(seed=1).encode(TEXTS))
    assert equal(bank.encode_for_prior(TEXTS), LetterEncoder().encode(TEXTS))
    assert bank.prior_encoder.stores == stores[:1] and bank.generator_encoder.stores == stores[1:]
    assert bank.prior_encoder.num_encoded == bank.generator_encoder.num_encoded == len(bank) == 0


def test_pooled_shards_serve_the_generator_only(tmp_path: Path):
    bank = TextBank(LetterEncoder(), stores=[stored(tmp_path, pooled_only=True, suffixes=())])
    assert bank.pooled_only and not TextBank(LetterEncoder()).pooled_only
    text = bank.generator_text([*TEXTS, "not in any shard"])
    assert text.tokens.shape == (3, 0, WIDTH) and text.mask.shape == (3, 0)
    assert torch.equal(text.pooled[2], LetterEncoder().encode(["not in any shard"]).pooled[0])
    assert bank.encode_for_prior(TEXTS).tokens.shape == (2, LetterEncoder.max_length, WIDTH)
    assert torch.equal(bank.generator_text(TEXTS).pooled, bank.encode_for_prior(TEXTS).pooled)
    assert all(row.tokens.untyped_storage().nbytes() == 0 for row in bank.generator_encoder._cache.values())


def test_shards_of_another_encoder_are_refused(tmp_path: Path):
    store = stored(tmp_path, encoder=LetterEncoder(seed=5))
    prior, generator = LetterEncoder(), LetterEncoder(seed=6)
    prior.name, generator.name = "sd at abc", "t5"
    with pytest.raises(ValueError, match="encoded with letters, not with the prior's sd at abc; encode"):
        TextBank(prior, stores=[store])
    with pytest.raises(ValueError, match="encoded with letters, not with the prior's sd at abc or the gen"):
        TextBank(prior, generator_encoder=generator, stores=[store])


def test_texts_missing_from_shards_are_reported(tmp_path: Path):
    with_views, plain = stored(tmp_path / "views"), stored(tmp_path / "plain", suffixes=())
    assert TextBank(LetterEncoder()).missing_from_shards(TEXTS) is None  # without shards, nothing is missing
    assert TextBank(LetterEncoder(), stores=[with_views]).missing_from_shards(TEXTS) is None
    message = TextBank(LetterEncoder(), stores=[plain]).missing_from_shards(TEXTS)
    assert message is not None and message.startswith("text.shards lack 100% of the view texts: these are")
    message = TextBank(LetterEncoder(), stores=[with_views]).missing_from_shards([*TEXTS, "missing", "too"])
    assert message is not None
    assert message.startswith("text.shards lack 50% of the prompts and 50% of the view texts")
    directions = ViewTextConfig(direction_step_deg=10)
    assert TextBank(LetterEncoder(), directions, stores=[plain]).missing_from_shards(TEXTS) is None
    pooled = stored(tmp_path / "pooled", pooled_only=True, suffixes=())
    assert TextBank(LetterEncoder(), directions, stores=[pooled]).missing_from_shards(TEXTS) is None


def test_an_empty_cache_is_refused():
    with pytest.raises(ValueError, match="^cache_size must be at least 1, got 0"):
        TextConfig(cache_size=0)
