"""Corpora stored as Parquet tables: they open without parsing, and are checked like any other list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amortized.files import atomic_path
from amortized.untrusted import short
from corpora.limits import MAX_PROMPTS, MAX_TEXT_BYTES
from corpora.parquet import num_bytes, pc, read_batches, read_schema
from corpora.prompts import MAX_CHARACTERS, prompt_key, validate_prompt
from corpora.table import ID, MAX_ID_LENGTH, SPLITS, PromptTable, training_indices

FORMAT = "1"
COLUMN_TYPES = {
    "text": pa.large_string(),
    "splits": pa.uint8(),
    "repeats": pa.int32(),
    "key": pa.uint64(),
    "id": pa.large_string(),  # if the list has ids
}
KEYS_CHECKED = 1000  # evenly spaced rows of which the hash is calculated again


def save_table(table: PromptTable, path: Path, **facts: str) -> None:
    """Write a table to a Parquet file atomically; `facts` go into its metadata.

    Raises ValueError if the path holds a file that `save_table` did not write.
    """
    if path.exists() and _facts(path) is None:
        raise ValueError(
            f"{short(path)} is not a stored corpus, and would be overwritten: choose another name"
        )
    columns = {"text": table.texts, "splits": table.splits, "repeats": table.repeats, "key": table.keys}
    if table.ids is not None:
        columns["id"] = table.ids
    metadata = {"amortized3d": json.dumps({"format": FORMAT, "name": table.name, **facts})}
    with atomic_path(path) as temporary:
        pq.write_table(
            pa.table(columns).replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            use_dictionary=["splits", "repeats"],  # type: ignore[arg-type]  # the others are distinct
            write_page_checksum=True,
        )


def load_table(path: Path) -> PromptTable | None:
    """Load a table that `save_table` wrote; None for any other Parquet file.

    Raises:
        ValueError: a damaged file, another format version, or a prompt or id that no list may have.
    """
    facts = _facts(path)
    if facts is None:
        return None
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{short(path)}: has format {str(facts.get('format'))[:20]}, expected {FORMAT}; create it again"
        )
    schema = read_schema(path)
    names = [name for name in COLUMN_TYPES if name != "id" or name in schema.names]
    if any(schema.names.count(name) != 1 or schema.field(name).type != COLUMN_TYPES[name] for name in names):
        raise ValueError(f"{short(path)}: its columns are not those of a stored corpus; create it again")
    columns = _read_columns(path, names)
    splits, repeats = columns["splits"].to_numpy(), columns["repeats"].to_numpy()
    texts, ids, keys = columns["text"], columns.get("id"), columns["key"].to_numpy()
    if not len(texts):
        raise ValueError(f"{short(path)}: contains no prompts; create it again")
    _check_texts(texts, keys, path)
    if ids is not None:
        _check_ids(ids, path)
    if np.any(splits == 0) or np.any(splits >= 1 << len(SPLITS)) or np.any(repeats < 0):
        raise ValueError(f"{short(path)}: a row is in no list, or in an unknown one; create it again")
    return PromptTable(
        name=str(facts.get("name", ""))[:200],
        texts=texts,
        splits=splits,
        repeats=repeats,
        keys=keys,
        ids=ids,
        trained=training_indices(splits),
    )


def _facts(path: Path) -> dict[str, Any] | None:
    """The metadata of `save_table`; None if the file has none. Raises ValueError if it is damaged."""
    metadata = (read_schema(path).metadata or {}).get(b"amortized3d")
    if metadata is None:
        return None
    try:
        facts = json.loads(metadata)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{short(path)}: its metadata are damaged; create it again")
    return facts


def _read_columns(path: Path, names: list[str]) -> dict[str, Any]:
    """The whole columns by name, without nulls."""
    chunks: dict[str, list[pa.Array]] = {name: [] for name in names}
    size = rows = 0
    for batch in read_batches(path, names):
        rows += len(batch)
        size += sum(num_bytes(batch.column(name)) for name in ("text", "id") if name in names)
        if size > MAX_TEXT_BYTES or rows > MAX_PROMPTS:
            raise ValueError(
                f"{short(path)}: more than {MAX_PROMPTS:,} prompts, or {MAX_TEXT_BYTES:,} bytes of text"
            )
        for name in names:
            column = batch.column(name)
            if column.null_count:
                raise ValueError(f"{short(path)}: the column {name} has empty cells; create it again")
            chunks[name].append(column.cast(COLUMN_TYPES[name]))
    return {
        name: pa.chunked_array(arrays, COLUMN_TYPES[name]).combine_chunks() for name, arrays in chunks.items()
    }


def _check_texts(texts: pa.LargeStringArray, keys: np.ndarray, path: Path) -> None:
    """Raise ValueError for a text that is not a prompt as `validate_prompt` returns it, or a repeated one."""
    length = pc.binary_length(texts)
    simple = pc.and_(pc.string_is_ascii(texts), pc.utf8_is_printable(texts))
    for passes in (
        pc.greater(length, 0),
        pc.less_equal(length, MAX_CHARACTERS),
        pc.invert(pc.starts_with(texts, " ")),
        pc.invert(pc.ends_with(texts, " ")),
    ):
        simple = pc.and_(simple, passes)
    for row in pc.indices_nonzero(pc.invert(simple)).to_pylist():
        text, location = texts[row].as_py(), f"{short(path)}, row {row + 1}"
        if validate_prompt(text, location) != text:
            raise ValueError(
                f"{location}: has spaces around it or invisible characters; convert the list again"
            )
    for row in range(0, len(texts), -(-len(texts) // KEYS_CHECKED)):
        if prompt_key(texts[row].as_py()) != int(keys[row]):
            raise ValueError(
                f"{short(path)}, row {row + 1}: its key is not that of its text; create it again"
            )
    # Equal texts have equal keys.
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    rows = order[np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))]
    seen: dict[str, int] = {}
    for row, text in zip(rows.tolist(), texts.take(rows).to_pylist(), strict=True):
        if seen.setdefault(text, row) != row:
            raise ValueError(f"{short(path)}, row {row + 1}: repeats row {seen[text] + 1}; create it again")


def _check_ids(ids: pa.LargeStringArray, path: Path) -> None:
    """Raise ValueError for an id that is unsafe in file names, or equals another but for case."""
    length = pc.binary_length(ids)
    good = pc.and_(
        pc.match_substring_regex(ids, f"^(?:{ID.pattern})$"),
        pc.and_(pc.greater(length, 0), pc.less_equal(length, MAX_ID_LENGTH)),
    )
    bad = pc.indices_nonzero(pc.invert(good))
    if len(bad):
        row = bad[0].as_py()
        raise ValueError(
            f"{short(path)}, row {row + 1}: the id {ids[row].as_py()[:80]!r} becomes a file name: "
            f"use at most {MAX_ID_LENGTH} letters, digits, '-' and '_'"
        )
    lower = pc.ascii_lower(ids)
    if pc.count_distinct(lower).as_py() < len(ids):
        first: dict[str, int] = {}
        for row, name in enumerate(lower.to_pylist()):
            if first.setdefault(name, row) != row:
                raise ValueError(
                    f"{short(path)}, row {row + 1}: the id {ids[row].as_py()!r} already names row "
                    f"{first[name] + 1}"
                )
