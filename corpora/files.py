"""Read lists of prompts from .txt, .json, .jsonl, .csv and .parquet files, entry by entry.

.txt           one prompt per line; blank lines are skipped; all prompts are for training
.json          a list of prompts, or lists named train, val and test
.jsonl         one prompt per line: a string, or an object with `prompt` (or `text`), `split`, `id`
.csv           a header with a column `prompt` (or `text`), and optionally `split` and `id`
.parquet       the same columns

All text is UTF-8. The contents distinguish JSON from JSON Lines, and the header the delimiters of CSV.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from amortized.untrusted import open_regular, reason_of, short
from corpora.json_lists import JsonStream
from corpora.limits import MAX_ENTRY_BYTES, MAX_FILE_BYTES
from corpora.parquet import read_batches, read_schema, values_of
from corpora.prompts import is_blank
from corpora.table import SPLITS, Entry

TEXT_COLUMNS = ("prompt", "text")
DELIMITERS = ",;\t"
BOM = "\ufeff"
# How a JSON file with named lists begins; other objects are the rows of JSON Lines.
NAMED_LISTS = re.compile(r'\{\s*"(?:train|val|test)"\s*:')
NAMED_OR_ANY_LISTS = re.compile(r'\{\s*"(?:(?:train|val|test)"\s*:|[^"\\]{0,80}"\s*:\s*\[)')


def is_list(name: str | Path) -> bool:
    """Whether the name has the suffix of a list of prompts, in any case."""
    return Path(name).suffix.lower() in READERS


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file in order, unvalidated and with repeats.

    Raises:
        ValueError: unknown suffix, unreadable file or malformed entry; names the file and the line.
    """
    if not is_list(path):
        raise ValueError(f"{short(path)}: not a list of prompts; give a {', '.join(READERS)} file")
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        raise ValueError(f"{short(path)}: cannot be read ({reason_of(error)})") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (line without its end, location) of a UTF-8 file; memory is bounded for any line length."""
    with open_regular(path, MAX_FILE_BYTES) as file:
        number = 0
        while line := file.readline(MAX_ENTRY_BYTES + 1):
            number += 1
            location = f"{short(path)}, line {number}"
            if len(line) > MAX_ENTRY_BYTES:
                raise ValueError(
                    f"{location}: longer than {MAX_ENTRY_BYTES:,} bytes; is it a list of prompts?"
                )
            try:
                # A byte order mark may stand at the start of any line, if files were joined.
                yield line.decode("utf-8").lstrip(BOM).rstrip("\r\n"), location
            except UnicodeDecodeError:
                raise ValueError(f"{location}: not valid UTF-8; save the file as UTF-8") from None


def _from_txt(path: Path) -> Iterator[Entry]:
    for line, location in _lines(path):
        if not is_blank(line):
            yield Entry(line, "train", location)


# ---- JSON -------------------------------------------------------------------------------------


def _from_json(path: Path) -> Iterator[Entry]:
    """JSON or JSON Lines, whatever the suffix: the beginning tells which."""
    with open_regular(path, MAX_FILE_BYTES) as file:
        stream = JsonStream(file, short(path))
        first = stream.peek()
        if first == "[":
            yield from _from_list(stream, "train")
            stream.end()
        elif stream.matches(NAMED_LISTS if path.suffix.lower() == ".jsonl" else NAMED_OR_ANY_LISTS):
            for split in stream.keys():
                if split not in SPLITS:
                    raise ValueError(
                        f"{stream.location}: contains '{split[:80]}', not only lists named "
                        f"{', '.join(SPLITS)}; rename or remove it"
                    )
                if stream.peek() != "[":
                    kind = type(stream.value()).__name__
                    raise ValueError(f"{short(path)}, {split}: must be a list of prompts, got {kind}")
                yield from _from_list(stream, split)
            stream.end()
        elif first in ("{", '"'):
            while stream.peek():
                location = stream.location
                item = stream.value()
                yield (
                    Entry(item, "train", location) if isinstance(item, str) else _from_object(item, location)
                )
        elif first:
            stream.value()
            raise ValueError(
                f"{short(path)}: contains neither a list of prompts nor lists named {', '.join(SPLITS)}"
            )


def _from_list(stream: JsonStream, split: str) -> Iterator[Entry]:
    for index, item in enumerate(stream.items()):
        location = f"{stream.name}, {split}[{index}]"
        yield _from_object({"prompt": item} if isinstance(item, str) else item, location, split)


def _from_object(item: Any, location: str, split: str = "train") -> Entry:
    """Build an entry from a JSON object; `split` is the default if it names none."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{location}: a prompt must be a string, got {type(item).__name__}")
    column = next((name for name in TEXT_COLUMNS if name in item), None)
    if column is None:
        raise ValueError(_no_text_column(list(item), location))
    return _entry(item[column], item.get("split"), item.get("id"), location, split)


# ---- tables -----------------------------------------------------------------------------------


def _from_csv(path: Path) -> Iterator[Entry]:
    location, size = short(path), 0

    # A quoted cell may span lines, so the reader pulls lines itself; errors name the last one it read.
    def lines() -> Iterator[str]:
        nonlocal location, size
        for line, location in _lines(path):
            size += len(line) + 1
            if size > MAX_ENTRY_BYTES:
                raise ValueError(
                    f"{location}: a row is longer than {MAX_ENTRY_BYTES:,} bytes; is a quote missing?"
                )
            yield line + "\n"

    source = lines()
    header = next((line for line in source if not is_blank(line)), None)
    if header is None:
        return
    if header.lower().startswith("sep=") and len(header.strip()) == 5:  # Excel names the delimiter so
        delimiter, first = header.strip()[4], []
    else:
        delimiter, first = _delimiter(header), [header]
    try:
        rows = csv.reader(chain(first, source), delimiter=delimiter, strict=True)
        names = next(rows, [])
        columns = _columns(names, location)
        size = 0
        for row in rows:
            size = 0
            if all(is_blank(cell) for cell in row):
                continue  # spreadsheets write rows of delimiters
            if any(not is_blank(cell) for cell in row[len(names) :]):
                raise ValueError(
                    f"{location}: has more columns than the header; quote prompts that contain '{delimiter}'"
                )
            cells = [row[index] if index is not None and index < len(row) else None for index in columns]
            yield _entry(cells[0] or "", cells[1], cells[2], location)
    except csv.Error as error:
        raise ValueError(f"{location}: not valid CSV ({error})") from error


def _delimiter(header: str) -> str:
    """The delimiter with which the header names a column of prompts; a comma if none does."""

    def fits(delimiter: str) -> bool:
        names = [name.strip().strip('"').strip().lower() for name in header.split(delimiter)]
        return any(name in TEXT_COLUMNS for name in names)

    return next(filter(fits, DELIMITERS), ",")


def _from_parquet(path: Path) -> Iterator[Entry]:
    schema = read_schema(path)
    indices = _columns(schema.names, short(path))
    names = [schema.names[index] for index in indices if index is not None]
    for name in names:
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
                or (pa.types.is_integer(kind) and name.strip().lower() == "id")):  # fmt: skip
            raise ValueError(f"{short(path)}: the column {name} must hold text, not {str(kind)[:80]}")
    number = 0
    for batch in read_batches(path, names):
        columns = [values_of(batch.column(name)) for name in names]
        cells = [iter([None] * len(batch)) if index is None else columns.pop(0) for index in indices]
        for text, split, entry_id in zip(*cells, strict=True):
            number += 1
            yield _entry(text, split, entry_id, f"{short(path)}, row {number}")


def _columns(names: Sequence[str], location: str) -> tuple[int, int | None, int | None]:
    """The positions of the columns text, split and id, whatever the case of their names.

    Raises ValueError if there is no text, or if one of them appears twice.
    """
    plain = [name.strip().lower() for name in names]
    for name in (*TEXT_COLUMNS, "split", "id"):
        if plain.count(name) > 1:
            raise ValueError(f"{location}: has {plain.count(name)} columns named {name}; remove all but one")
    positions = [plain.index(name) if name in plain else None for name in (*TEXT_COLUMNS, "split", "id")]
    text = positions[0] if positions[0] is not None else positions[1]
    if text is None:
        raise ValueError(_no_text_column(names, location))
    return text, positions[2], positions[3]


def _no_text_column(names: Sequence[str], location: str) -> str:
    shown = ", ".join(map(str, names[:20]))[:200]
    return f"{location}: has no column named {' or '.join(TEXT_COLUMNS)}, but {shown}"


def _entry(text: Any, row_split: Any, row_id: Any, location: str, split: str = "train") -> Entry:
    """Build an entry from cells; `split` is the default if the row names none."""
    if not isinstance(text, str):
        raise ValueError(f"{location}: a prompt must be a string, got {type(text).__name__}")
    row_split = row_split.strip().lower() if isinstance(row_split, str) else row_split
    if row_split not in (None, "", *SPLITS):
        raise ValueError(f"{location}: split must be one of {', '.join(SPLITS)}, got {str(row_split)[:80]!r}")
    row_id = row_id.strip() if isinstance(row_id, str) else row_id
    return Entry(text, row_split or split, location, None if row_id in (None, "") else str(row_id)[:200])


READERS: Mapping[str, Callable[[Path], Iterator[Entry]]] = {
    ".txt": _from_txt,
    ".json": _from_json,
    ".jsonl": _from_json,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}
