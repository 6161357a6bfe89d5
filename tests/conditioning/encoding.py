"""Encode small corpora into shards."""

from __future__ import annotations

from pathlib import Path

from amortized.conditioning.encode import encode_shards, finish_encoding, plan_encoding, start_encoding
from tests.conditioning.letter_encoder import LetterEncoder, numbered

VIEWS = (", front view", ", back view")
PARTS = ("pooled", "tokens", "mask")


def encoded(folder: Path, corpus=None, encoder=None, *, world_size: int = 1, verify=False, **how) -> Path:
    """Encode a corpus (23 numbered prompts by default) into `folder`; `how` overrides the plan."""
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
    """Return the bytes of all files but the lock, by path relative to the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
