"""Lists of prompts that others wrote: any of them opens, or is one sentence, without much memory or time."""

from __future__ import annotations

import csv
import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import corpora.limits
from amortized.types import Corpus
from corpora import open_corpus
from corpora.__main__ import main
from corpora.files import READERS
from corpora.prompts import prompt_key, validate_prompt
from corpora.stored import COLUMN_TYPES, FORMAT, load_table, save_table
from corpora.table import SPLITS, Entry, tabulate
from tests.corpora.test_files import as_csv, as_parquet

FOLDER = pytest.TempPathFactory


def lines_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_lists(rows: list[dict]) -> bytes:
    """Lists by split: without ids, and in the order of the splits."""
    return json.dumps(
        {split: [row["prompt"] for row in rows if row["split"] == split] for split in SPLITS}
    ).encode()


def semicolons(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "prompt", "split"], delimiter=";")
    writer.writeheader()
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def from_a_spreadsheet(rows: list[dict]) -> bytes:
    """With upper-case headers, columns without a name, and rows of commas."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["Prompt", "SPLIT", " id ", "", ""])
    for row in rows:
        writer.writerows([[row["prompt"], row["split"], row["id"], "", ""], [""] * 5, ["", " "]])
    return text.getvalue().encode()


WRITERS = {
    "list.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "lines.jsonl": lines_of,
    "lines.json": lines_of,
    "list.jsonl": lambda rows: json.dumps(rows).encode(),
    "LINES.JSONL": lambda rows: b"\xef\xbb\xbf" + lines_of(rows).replace(b"\n", b"\r\n"),
    "commas.csv": as_csv,
    "semicolons.CSV": semicolons,
    "sheet.csv": from_a_spreadsheet,
    "columns.parquet": as_parquet,
    "Columns.Parquet": lambda rows: as_parquet(
        [{key.title(): value for key, value in r.items()} for r in rows]
    ),
}
# Letters of every kind, without what a line of text cannot hold; validate_prompt decides which are prompts.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=30)


def is_prompt(text: str) -> bool:
    try:
        return bool(validate_prompt(text, "here"))
    except ValueError:
        return False


PROMPTS = st.lists(
    TEXTS.filter(is_prompt), min_size=1, max_size=8, unique_by=lambda t: validate_prompt(t, "")
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict]:
    texts = draw(PROMPTS)
    splits = draw(st.lists(st.sampled_from(SPLITS), min_size=len(texts), max_size=len(texts)))
    return [
        {"prompt": text, "split": split, "id": f"row-{number}"}
        for number, (text, split) in enumerate(zip(texts, splits, strict=True))
    ]


def contents(corpus: Corpus) -> list[tuple[str, str, str]]:
    return [(p.text, p.id, p.split) for p in (corpus[i] for i in range(len(corpus)))]


@given(tables())
def test_a_table_is_the_same_in_every_format(tmp_path_factory: FOLDER, rows: list[dict]) -> None:
    folder = tmp_path_factory.mktemp("formats")
    expected = [
        (validate_prompt(r["prompt"], ""), r["id"], "train" if r["split"] == "train" else "heldout")
        for r in rows
    ]
    for name, write in WRITERS.items():
        (folder / name).write_bytes(write(rows))
        assert contents(open_corpus(str(folder / name))) == expected, name
    (folder / "PLAIN.TXT").write_text("\ufeff" + "\n\ufeff".join(r["prompt"] for r in rows), encoding="utf-8")
    assert [text for text, _, _ in contents(open_corpus(str(folder / "PLAIN.TXT")))] == [
        e[0] for e in expected
    ]
    (folder / "lists.json").write_bytes(as_lists(rows))
    assert {text for text, _, _ in contents(open_corpus(str(folder / "lists.json")))} == {
        e[0] for e in expected
    }
    save_table(open_corpus(str(folder / "list.json")), folder / "stored.parquet")  # type: ignore[arg-type]
    assert contents(open_corpus(str(folder / "stored.parquet"))) == expected


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of a random format with a few random edits of its bytes."""
    rows = [
        {"prompt": "a red cube", "split": "train", "id": "one"},
        {"prompt": "a é", "split": "val", "id": "b"},
    ]
    name = draw(st.sampled_from([*WRITERS, "plain.txt"]))
    data = bytearray(WRITERS[name](rows) if name in WRITERS else b"a red cube\na cone\n")
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 12)))
        data[start:stop] = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from([b'"', b"\0", b"[" * 3000, b"{", b"\n", b",", b"9" * 5000]),
            )
        )
    return name, bytes(data)


@given(damaged())
def test_damaged_files_open_or_are_one_sentence(tmp_path_factory: FOLDER, file: tuple[str, bytes]) -> None:
    path = tmp_path_factory.mktemp("damaged") / file[0]
    path.write_bytes(file[1])
    try:
        corpus = open_corpus(str(path))
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 800
    else:
        assert len(corpus) > 0
        assert all(validate_prompt(text, "") == text for text, _, _ in contents(corpus))


# ---- bombs and devices --------------------------------------------------------------------------


def sparse(path: Path, head: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(2**34)


def repeated(path: Path, text: str, rows: int, **how: object) -> None:
    """A few kilobytes that unpack to len(text) * rows bytes."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"prompt": values}), path, compression="zstd", **how)


BOMBS = {
    "sparse.json": lambda path: sparse(path, b'["a cube", '),
    "sparse.txt": lambda path: sparse(path),
    "sparse.csv": lambda path: sparse(path, b"prompt\n"),
    "sparse.parquet": lambda path: sparse(path, b"PAR1"),
    "endless.csv": lambda path: path.write_bytes(b'prompt\n"a' + b'\n","' * 400_000),
    "quoted.csv": lambda path: path.write_bytes(b'prompt\n"' + b"a cube\n" * 300_000),
    "wide.csv": lambda path: path.write_bytes(b"prompt" + b"," * 100_000),
    "entry.json": lambda path: path.write_bytes(b'["' + b"a" * 3_000_000),
    "nested.json": lambda path: path.write_bytes(b"[" + b"[],[" * 500_000),
    "key.json": lambda path: path.write_bytes(b'{"train": ["a"], "' + b"a" * 3_000_000),
    "long.jsonl": lambda path: path.write_bytes(b'{"prompt": "' + b"a" * 3_000_000 + b'"}'),
    "long.parquet": lambda path: repeated(path, "a" * 2**22, 100_000),
    "rows.parquet": lambda path: repeated(path, "a" * 2**15, 40_000, use_dictionary=False),
    "pipe.txt": os.mkfifo,
    "pipe.json": os.mkfifo,
    "pipe.parquet": os.mkfifo,
    "zero.csv": lambda path: path.symlink_to("/dev/zero"),
    "loop.jsonl": lambda path: path.symlink_to(path),
    "loop.parquet": lambda path: path.symlink_to(path),
    "folder.json": lambda path: path.mkdir(),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_devices_are_refused_without_memory(tmp_path: Path, name: str) -> None:
    BOMBS[name](tmp_path / name)
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=name) as error:
        open_corpus(str(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 2**26 and pa.total_allocated_bytes() - before < 2**26
    tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 800


@pytest.mark.parametrize(
    ("limit", "value", "problem"),
    [("MAX_PROMPTS", 2, "at most 2 prompts"), ("MAX_TEXT_BYTES", 9, "at most 9 bytes")],
)
def test_a_corpus_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, problem: str) -> None:
    assert getattr(corpora.limits, limit) >= 2**25  # ten million prompts fit
    monkeypatch.setattr(f"corpora.table.{limit}", value)
    entries = [Entry(text, "train", f"line {i}") for i, text in enumerate(["cube", "cube", "cone", "ball"])]
    assert len(tabulate(entries[:3], "mine")) == 2
    with pytest.raises(ValueError, match=f"line 3: a corpus has {problem}"):
        tabulate(entries, "mine")


# ---- tables of others under our name --------------------------------------------------------------

GOOD = {"text": ["a cube", "a cone"], "splits": [1, 2], "repeats": [1, 0], "id": ["one", "two"]}
FORGED = [
    ({"text": ["a cube", " "]}, "the prompt is empty"),
    ({"text": ["a cube", "a \0"]}, "row 2: contains a NUL"),
    ({"text": ["a cube", "a\x1b[31m"]}, "row 2: contains a control character"),
    ({"text": ["a cube ", "a cone"]}, "row 1: has spaces around it"),
    ({"text": ["a cube", "a\u200bcone"]}, "row 2: has spaces around it or invisible"),
    ({"text": ["a cube", "a" * 5000]}, "row 2: 5,000 characters"),
    ({"text": ["a cube", "é" * 5000]}, "row 2: 5,000 characters"),
    ({"text": ["a cube", "a cube"]}, "row 2: repeats row 1"),
    ({"id": ["one", "../x"]}, "row 2: the id '../x' becomes a file name"),
    ({"id": ["one", "x\n"]}, "becomes a file name"),
    ({"id": ["one", ""]}, "becomes a file name"),
    ({"id": ["one", "x" * 65]}, "becomes a file name"),
    ({"id": ["one", "ONE"]}, "row 2: the id 'ONE' already names row 1"),
    ({"splits": [1, 0]}, "in no list"),
    ({"splits": [1, 8]}, "in an unknown one|in no list"),
    ({"repeats": [1, -1]}, "in no list"),
    ({"key": [1, 2]}, "row 1: its key is not that of its text"),
    ({"text": ["a cube", None]}, "empty cells"),
    ({"text": [], "splits": [], "repeats": [], "id": []}, "contains no prompts"),
]


@pytest.mark.parametrize(("change", "problem"), [({}, ""), *FORGED], ids=range(len(FORGED) + 1))
def test_a_stored_table_is_checked_like_a_list(tmp_path: Path, change: dict, problem: str) -> None:
    rows = {**GOOD, **change}
    rows.setdefault("key", [prompt_key(text or "") for text in rows["text"]])
    columns = {name: pa.array(rows[name], kind) for name, kind in COLUMN_TYPES.items()}
    metadata = {"amortized3d": json.dumps({"format": FORMAT, "name": "mine"})}
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    if not problem:
        assert contents(open_corpus(str(path))) == [("a cube", "one", "train"), ("a cone", "two", "heldout")]
        return
    with pytest.raises(ValueError, match=problem) as error:
        load_table(path)
    assert str(path) in str(error.value)


def test_a_file_of_others_is_never_overwritten(tmp_path: Path) -> None:
    table = tabulate([Entry("a cube", "train", "here")], "mine")
    for name, data in (("foreign.parquet", as_parquet([{"prompt": "a"}])), ("text.parquet", b"my only copy")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="would be overwritten|not an intact"):
            save_table(table, tmp_path / name)
        assert (tmp_path / name).read_bytes() == data
    save_table(table, tmp_path / "own.parquet")
    save_table(table, tmp_path / "own.parquet")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    table = tabulate([Entry("a cube", "train", "here")], "mine")
    save_table(table, tmp_path / "own.parquet")
    before = (tmp_path / "own.parquet").read_bytes()

    def write_half(columns: pa.Table, path: Path, **how: object) -> None:
        path.write_bytes(before[:100])
        raise error

    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises((KeyboardInterrupt, OSError)):
        save_table(table, tmp_path / "own.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["own.parquet"]
    assert (tmp_path / "own.parquet").read_bytes() == before


@pytest.mark.parametrize(
    "output", ["s3://bucket/x.parquet", "https://me:hush@host/x.parquet", "pipe:x.parquet"]
)
def test_outputs_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, output: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("a cube", encoding="utf-8")
    for command in (["convert", "own.txt"], ["encode", "own.txt", "--encoder", "missing"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--output", output])
        message = capsys.readouterr().err
        assert stop.value.code == 2 and "must be on a local disk" in message and "hush" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


INVISIBLE = "\ufeff\u200b\u200e\u202e\u2060\u00ad\u115f\u3164\U000e0041\ufff9"


@given(TEXTS.filter(is_prompt), st.lists(st.sampled_from(INVISIBLE), max_size=4), st.integers(0, 30))
def test_invisible_characters_change_no_prompt(text: str, letters: list[str], at: int) -> None:
    assert validate_prompt(text[:at] + "".join(letters) + text[at:], "") == validate_prompt(text, "")


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\ufeff", "\u200b \u200d", "\u3164", "\u2800", "\ufe0f", "\u3000", INVISIBLE]
)
def test_what_prints_nothing_is_no_prompt(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        validate_prompt(text, "here")
    (tmp_path / "list.txt").write_text(f"{text}\na cube\n", encoding="utf-8")
    assert len(open_corpus(str(tmp_path / "list.txt"))) == 1


def test_letters_and_emoji_that_need_joiners_keep_them() -> None:
    for text in (
        "a \U0001f468\u200d\U0001f469\u200d\U0001f467 family",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "a \u2764\ufe0f",
    ):
        assert validate_prompt(text, "") == text


def test_every_reader_has_a_writer_here() -> None:
    assert {Path(name).suffix.lower() for name in WRITERS} | {".txt"} == set(READERS)
