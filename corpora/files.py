"""Lists of prompts as files: .txt, .json, .jsonl, .csv and .parquet, read entry by entry.

.txt      one prompt a line; blank lines are skipped; all for training
.json     a list of prompts, or lists named train, val and test
.jsonl    a prompt a line: a string, or an object with `prompt` (or `text`), `split`, `id`
.csv      a header that names a column `prompt` (or `text`), and may name `split` and `id`
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


def entries_of(path: Path) -> Iterator[Entry]:
    """The prompts of a file as it has them; raises ValueError, naming file and line."""
    if path.suffix not in READERS:
        raise ValueError(f"{path}: not a list of prompts; give a {', '.join(READERS)} file")
    try:
        yield from READERS[path.suffix](path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror or error}); give a file of prompts"
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(line without its end, where) of a UTF-8 file; a line of any length costs bounded memory."""
    with path.open("rb") as file:
        for number, line in enumerate(_raw_lines(file), 1):
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{where}: longer than {MAX_LINE_BYTES:,} bytes; is it a list of prompts?")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode("utf-8").rstrip("\r\n"), where
            except UnicodeDecodeError:
                raise ValueError(f"{where}: not valid UTF-8; save the file as UTF-8") from None


def _raw_lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


def _from_txt(path: Path) -> Iterator[Entry]:
    for line, where in _lines(path):
        if line.strip():
            yield Entry(line, "train", where)


def _from_jsonl(path: Path) -> Iterator[Entry]:
    for line, where in _lines(path):
        if line.strip():
            found = _parsed(line, where)
            yield Entry(found, "train", where) if isinstance(found, str) else _from_row(found, where)


def _from_csv(path: Path) -> Iterator[Entry]:
    where = str(path)

    def lines() -> Iterator[str]:
        nonlocal where
        for line, here in _lines(path):
            where = here
            yield line + "\n"

    try:
        rows = csv.DictReader(lines(), strict=True)
        if rows.fieldnames is not None:
            _text_column(rows.fieldnames, where)
        for row in rows:
            if None in row:
                raise ValueError(f"{where}: has more columns than the header; quote prompts that hold commas")
            yield _from_row(row, where)
    except csv.Error as error:
        raise ValueError(f"{where}: not valid CSV ({error})") from error


def _from_json(path: Path) -> Iterator[Entry]:
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {number}: not valid UTF-8; save the file as UTF-8") from None
    found = _parsed(text, str(path))
    if isinstance(found, list):
        found = {"train": found}
    if not isinstance(found, dict) or not set(found) & set(SPLITS):
        raise ValueError(f"{path}: holds neither a list of prompts nor lists named {', '.join(SPLITS)}")
    if others := [name for name in found if name not in SPLITS]:
        raise ValueError(
            f"{path}: holds '{others[0][:80]}' besides lists named {', '.join(SPLITS)}; rename or remove it"
        )
    for split in found:
        if not isinstance(found[split], list):
            raise ValueError(f"{path}, {split}: must be a list of prompts, got {type(found[split]).__name__}")
        for place, item in enumerate(found[split]):
            where = f"{path}, {split}[{place}]"
            yield _from_row({"prompt": item} if isinstance(item, str) else item, where, split)


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
        raise ValueError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from error


READERS: Mapping[str, Callable[[Path], Iterator[Entry]]] = {
    ".txt": _from_txt,
    ".json": _from_json,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(f"{where}: not a list of prompts, but nested beyond reason") from None
    except ValueError as error:  # also numbers of absurd length
        raise ValueError(f"{where}: not valid JSON ({error})") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; JSON's reader would keep the last of two alike and lose the others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"'{twice[:80]}' is there twice")
    return found


def _text_column(names: Iterable[str], where: str) -> str:
    names = list(names)
    for column in TEXT_COLUMNS:
        if column in names:
            return column
    raise ValueError(
        f"{where}: has no column named {' or '.join(TEXT_COLUMNS)}, but {', '.join(names)[:200]}"
    )


def _from_row(row: Any, where: str, split: str = "train") -> Entry:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: a prompt must be a string, got {type(row).__name__}")
    text = row[_text_column(row, where)]
    given, chosen = row.get("id"), row.get("split")
    if not isinstance(text, str):
        raise ValueError(f"{where}: a prompt must be a string, got {type(text).__name__}")
    if chosen not in (None, "", *SPLITS):
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {str(chosen)[:80]!r}")
    return Entry(text, chosen or split, where, None if given in (None, "") else str(given))
