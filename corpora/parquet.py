"""Read Parquet files that others wrote, within limits that are checked before the memory is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from amortized.untrusted import open_regular, short
from corpora.limits import MAX_ENTRY_BYTES, MAX_FILE_BYTES, MAX_GROUP_BYTES, MAX_GROUP_ROWS, MAX_ROWS

pc: Any = pyarrow.compute  # its functions are made when it is imported, so type checkers do not know them
ROWS_AT_ONCE = 2**16
# With these encodings the unpacked size is that of the values. With the others a short column chunk may stand
# for any number of bytes: a long value in a dictionary, or the same start of many values.
PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}


def read_schema(path: Path) -> pa.Schema:
    """The columns and metadata of a Parquet file. Raises ValueError if it is damaged or no regular file."""
    with _opened(path) as file:
        return file.schema_arrow


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a Parquet file in batches; text columns may come as dictionaries.

    Raises ValueError if the file is damaged, unpacks to more than the limits, or has a longer cell than one.
    """
    with _opened(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        chunks = [[chunk for chunk in _chunks(group) if chunk.path_in_schema in columns] for group in groups]
        _check_sizes(file, chunks, path)
        compact = {c.path_in_schema for group in chunks for c in group if not set(c.encodings) <= PLAIN}
    number = 0
    with _opened(path, read_dictionary=sorted(compact)) as file:
        for index, group in enumerate(groups):
            # Each batch would have the whole dictionary so far: take the rows of a group in one.
            size = group.num_rows if compact else ROWS_AT_ONCE
            for batch in file.iter_batches(batch_size=size, row_groups=[index], columns=list(columns)):
                for name in columns:
                    _check_cells(batch.column(name), f"{short(path)}, after row {number}, {name}")
                number += len(batch)
                yield batch


def values_of(array: pa.Array) -> list[Any]:
    """The cells as Python objects, each value of a dictionary once."""
    if not isinstance(array, pa.DictionaryArray):
        return array.to_pylist()
    values = array.dictionary.to_pylist()
    return [None if index is None else values[index] for index in array.indices.to_pylist()]


def num_bytes(array: pa.Array) -> int:
    """The size in bytes of a text column once its dictionary is expanded."""
    lengths = pc.binary_length(_distinct(array))
    lengths = lengths.take(array.indices) if isinstance(array, pa.DictionaryArray) else lengths
    return pc.sum(lengths.cast(pa.int64())).as_py() or 0


@contextmanager
def _opened(path: Path, **how: Any) -> Iterator[pq.ParquetFile]:
    """Context: an open Parquet file; what pyarrow raises for a damaged one becomes a ValueError."""
    with open_regular(path, MAX_FILE_BYTES):
        pass
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, memory_map=True, **how) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{short(path)}: not an intact Parquet file ({problem}); create it again") from error


def _chunks(group: Any) -> Iterator[Any]:
    return (group.column(number) for number in range(group.num_columns))


def _check_sizes(file: pq.ParquetFile, chunks: Sequence[Sequence[Any]], path: Path) -> None:
    rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    sizes = [sum(chunk.total_uncompressed_size for chunk in group) for group in chunks]
    for what, size, limit in (
        ("rows", max(sum(rows), file.metadata.num_rows), MAX_ROWS),
        ("rows in a row group", max(rows, default=0), MAX_GROUP_ROWS),
        ("unpacked bytes", sum(sizes), MAX_FILE_BYTES),
        ("unpacked bytes in a row group", max(sizes, default=0), MAX_GROUP_BYTES),
    ):
        if size > limit:
            raise ValueError(
                f"{short(path)}: has {size:,} {what}, and at most {limit:,} are allowed; "
                "is it a list of prompts?"
            )


def _distinct(array: pa.Array) -> pa.Array:
    return array.dictionary if isinstance(array, pa.DictionaryArray) else array


def _check_cells(array: pa.Array, location: str) -> None:
    array.validate(full=True)
    values = _distinct(array)
    values.validate(full=True)  # includes UTF-8
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > MAX_ENTRY_BYTES:
            raise ValueError(
                f"{location}: a cell has {longest:,} bytes, and at most {MAX_ENTRY_BYTES:,} are allowed"
            )
