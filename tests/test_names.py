"""Short names of texts."""

from amortized.names import text_hash


def test_hashes_never_change():
    # Golden value: prompt ids, shard keys and folder names depend on it.
    assert text_hash("a red cube") == "d9909b205c5978c8"
    assert text_hash("a red cube ") != text_hash("a red cube")
