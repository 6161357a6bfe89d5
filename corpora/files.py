"""Read lists of prompts from .txt, .json, .jsonl, .csv and .parquet files, entry by entry.

.txt      one prompt per line; blank lines are skipped; all prompts are for training
.json     a list of prompts, or lists named train, val and test
.jsonl    one prompt per line: a string, or an object with `prompt` (or `text`), `split`, `id`
.csv      a header with a column `prompt` (or `text`), and optionally `split` and `id`
.parquet  the same columns
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.table import SPLITS, Entry

MAX_LINE_BYTES = 1 << 16
TEXT_COLUMNS = ("prompt", "text")


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file in order, unvalidated and with repeats.

    Raises:
        ValueError: unknown suffix, unreadable file or malformed entry; names the file and the line.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: not a list of prompts; give a {', '.join(READERS)} file")
    try:
        yield from READERS[path.suffix](path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); give a file of prompts"
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (line without its end, location) of a UTF-8 file; memory is bounded for any line length."""
    with path.open("rb") as file:
        for number, line in enumerate(_raw_lines(file), 1):
            location = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{location}: longer than {MAX_LINE_BYTES:,} bytes; is it a list of prompts?"
                )
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode("utf-8").rstrip("\r\n"), location
            except UnicodeDecodeError:
                raise ValueError(f"{location}: not valid UTF-8; save the file as UTF-8") from None


def _raw_lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


def _from_txt(path: Path) -> Iterator[Entry]:
    for line, location in _lines(path):
        if line.strip():
            yield Entry(line, "train", location)


def _from_jsonl(path: Path) -> Iterator[Entry]:
    for line, location in _lines(path):
        if line.strip():
            item = _parse_json(line, location)
            yield Entry(item, "train", location) if isinstance(item, str) else _from_row(item, location)


def _from_csv(path: Path) -> Iterator[Entry]:
    location = str(path)

    # A quoted cell may span lines, so the reader pulls lines itself; errors name the last one it read.
    def lines() -> Iterator[str]:
        nonlocal location
        for line, line_location in _lines(path):
            location = line_location
            yield line + "\n"

    try:
        rows = csv.DictReader(lines(), strict=True)
        if rows.fieldnames is not None:
            _text_column(rows.fieldnames, location)
        for row in rows:
            if None in row:
                raise ValueError(
                    f"{location}: has more columns than the header; quote prompts that contain commas"
                )
            yield _from_row(row, location)
    except csv.Error as error:
        raise ValueError(f"{location}: not valid CSV ({error})") from error


def _from_json(path: Path) -> Iterator[Entry]:
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {number}: not valid UTF-8; save the file as UTF-8") from None
    lists = _parse_json(text, str(path))
    if isinstance(lists, list):
        lists = {"train": lists}
    if not isinstance(lists, dict) or not set(lists) & set(SPLITS):
        raise ValueError(f"{path}: contains neither a list of prompts nor lists named {', '.join(SPLITS)}")
    if unknown := [name for name in lists if name not in SPLITS]:
        raise ValueError(
            f"{path}: contains '{unknown[0][:80]}' besides lists named {', '.join(SPLITS)}; "
            "rename or remove it"
        )
    for split, items in lists.items():
        if not isinstance(items, list):
            raise ValueError(f"{path}, {split}: must be a list of prompts, got {type(items).__name__}")
        for index, item in enumerate(items):
            location = f"{path}, {split}[{index}]"
            yield _from_row({"prompt": item} if isinstance(item, str) else item, location, split)


def _from_parquet(path: Path) -> Iterator[Entry]:
    try:
        with pq.ParquetFile(path) as file:
            text = _text_column(file.schema_arrow.names, str(path))
            columns = [text, *(name for name in ("split", "id") if name in file.schema_arrow.names)]
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield _from_row(row, f"{path}, row {number}")
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{path}: not an intact Parquet file ({str(error).splitlines()[0]})") from error


READERS: Mapping[str, Callable[[Path], Iterator[Entry]]] = {
    ".txt": _from_txt,
    ".json": _from_json,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}


def _parse_json(text: str, location: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError(f"{location}: not a list of prompts, but JSON nested too deeply") from None
    except ValueError as error:  # includes numbers with too many digits
        raise ValueError(f"{location}: not valid JSON ({error})") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the object; raise ValueError on a repeated key, of which json would keep only the last."""
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"'{name[:80]}' appears twice")
        unique[name] = value
    return unique


def _text_column(names: Iterable[str], location: str) -> str:
    """The column that holds the prompts; raises ValueError if there is none."""
    names = list(names)
    for column in TEXT_COLUMNS:
        if column in names:
            return column
    raise ValueError(
        f"{location}: has no column named {' or '.join(TEXT_COLUMNS)}, but {', '.join(names)[:200]}"
    )


def _from_row(row: Any, location: str, split: str = "train") -> Entry:
    """Build an entry from a JSON object or table row; `split` is the default if the row names none."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{location}: a prompt must be a string, got {type(row).__name__}")
    text = row[_text_column(row, location)]
    row_id, row_split = row.get("id"), row.get("split")
    if not isinstance(text, str):
        raise ValueError(f"{location}: a prompt must be a string, got {type(text).__name__}")
    if row_split not in (None, "", *SPLITS):
        raise ValueError(f"{location}: split must be one of {', '.join(SPLITS)}, got {str(row_split)[:80]!r}")
    return Entry(text, row_split or split, location, None if row_id in (None, "") else str(row_id))
