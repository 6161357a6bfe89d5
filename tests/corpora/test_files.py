"""Lists of prompts as files: the same prompts from every format, and one-sentence errors."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora import open_corpus
from corpora.files import READERS
from corpora.limits import MAX_ENTRY_BYTES
from corpora.stored import load_table, save_table
from corpora.table import Entry, tabulate

ROWS = [
    {"prompt": "a red cube", "split": "train", "id": "one"},
    {"prompt": 'a café, "open"', "split": "val", "id": "two"},
    {"prompt": "a cone", "split": "train", "id": "three"},
]


def as_csv(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def write(folder: Path, suffix: str, data: bytes) -> Path:
    path = folder / f"prompts{suffix}"
    path.write_bytes(data)
    return path


def lines(rows: list) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


FORMATS = {
    "rows.json": (".json", json.dumps(ROWS).encode()),
    "rows.jsonl": (".jsonl", lines(ROWS)),
    "rows.csv": (".csv", as_csv(ROWS)),
    "rows.parquet": (".parquet", as_parquet(ROWS)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_prompts(tmp_path: Path, name: str):
    corpus = open_corpus(str(write(tmp_path, *FORMATS[name])))
    prompts = [(prompt.text, prompt.split, prompt.id) for prompt in (corpus[i] for i in range(len(corpus)))]
    splits = {"train": "train", "val": "heldout"}
    assert prompts == [(row["prompt"], splits[row["split"]], row["id"]) for row in ROWS]


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".txt", b"a red cube\na caf\xc3\xa9\n"),
        (".txt", b"a red cube\r\na caf\xc3\xa9\r\n"),
        (".txt", b"\n  a red cube \n\n\t\na caf\xc3\xa9"),
        (
            ".txt",
            b"\xef\xbb\xbfa red cube\na caf\xc3\xa9\n",
        ),  # with a byte order mark, as some editors write it
        (".json", b'["a red cube", "a caf\xc3\xa9"]'),
        (".json", b'\xef\xbb\xbf{"train": ["a red cube"], "test": ["a caf\\u00e9"]}'),
        (".jsonl", b'"a red cube"\n\n{"text": "a caf\xc3\xa9", "likes": 7}\n'),
        (".csv", b"\xef\xbb\xbflikes,text\r\n7,a red cube\r\n8,a caf\xc3\xa9\r\n"),
    ],
)
def test_plain_sentences(tmp_path: Path, suffix: str, data: bytes):
    corpus = open_corpus(str(write(tmp_path, suffix, data)))
    assert [corpus[index].text for index in range(len(corpus))] == ["a red cube", "a café"]


BAD = [
    (".txt", b"a cube\n\na caf\xe9\n", "line 3: not valid UTF-8"),
    (".txt", "a cube\n".encode("utf-16"), "line 1: not valid UTF-8"),
    (".txt", b"a cube\na \0 sphere\n", "line 2: contains a NUL byte"),
    (".txt", b"a cube\ra cone\r", r"line 1: contains a control character \(code 13\)"),
    (".txt", b"a cube\na \x1b[31mred cone\n", r"line 2: contains a control character \(code 27\)"),
    (".txt", b"", "contains no prompts"),
    (".txt", b" \n\n\t\n", "contains no prompts"),
    (".txt", b"a cube\n" + b"a" * 1_000_000 + b"\n", f"line 2: longer than {MAX_ENTRY_BYTES:,} bytes"),
    (".txt", b"a cube\n" + b"a" * 5000, "line 2: 5,000 characters; a prompt has at most 4,096"),
    (".json", b"", "contains no prompts"),
    (".json", b'["a cube"', "not valid JSON"),
    (".json", b'{"train": ["a cube"],\n"test": ["\xff"]}', "line 2: not valid UTF-8"),
    (".json", b"[]", "contains no prompts"),
    (".json", b'{"prompts": ["a cube"]}', "contains 'prompts', not only lists named train, val, test"),
    (
        ".json",
        b'{"train": ["a cube"], "validation": ["a cone"]}',
        "contains 'validation', not only lists named train",
    ),
    (".json", b'{"train": ["a cube"], "train": ["a cone"]}', r"not valid JSON \('train' appears twice\)"),
    (
        ".jsonl",
        b'{"prompt": "a cube", "prompt": "a cone"}',
        "line 1: not valid JSON .'prompt' appears twice",
    ),
    (".json", b"7", "neither a list of prompts"),
    (".json", b'{"train": "a cube"}', "train: must be a list of prompts, got str"),
    (".json", b'{"train": ["a cube", 7]}', r"train\[1\]: a prompt must be a string, got int"),
    (".json", b'{"train": ["a cube"], "val": [" "]}', r"val\[0\]: the prompt is empty"),
    (".json", b'["\\ud800"]', r"train\[0\]: contains an unpaired surrogate"),
    (".json", b"[" * 100_000, "nested too deeply"),
    (".json", b"[" + b"9" * 10_000 + b"]", "not valid JSON"),
    (".jsonl", b'"a cube"\n{"prompt": 7}\n', "line 2: a prompt must be a string, got int"),
    (
        ".jsonl",
        b'"a cube"\n{"caption": "a cone"}\n',
        "line 2: has no column named prompt or text, but caption",
    ),
    (".jsonl", b'{"prompt": "a cube", "split": "dev"}', "line 1: split must be one of train, val, test, got"),
    (
        ".jsonl",
        b'{"prompt": "a cube", "id": "x"}\n{"prompt": "a cone", "id": "x"}',
        "line 2: the id 'x' already names an",
    ),
    (".jsonl", b'{"prompt": "a cube", "id": "../x"}', "line 1: the id '../x' becomes a file name"),
    (".jsonl", b'{"prompt": "a cube", "id": "x"}\n"a cone"', "line 2: has no id, but earlier prompts have"),
    (".jsonl", b'"a cone"\n{"prompt": "a cube", "id": "x"}', "some prompts have an id, others none"),
    (
        ".jsonl",
        b'{"prompt": "a cube", "id": "Cube"}\n{"prompt": "a cone", "id": "cube"}',
        "line 2: the id 'cube' already names another prompt, as 'Cube'",
    ),
    (
        ".csv",
        b"prompt,id,prompt\na cube,1,a cone\n",
        "line 1: has 2 columns named prompt; remove all but one",
    ),
    (".csv", b"text,ID, id\na cube,1,2\n", "line 1: has 2 columns named id"),
    (".csv", b"prompt;id\na cube; red;1\n", "line 2: has more columns than the header; quote prompts .* ';'"),
    (".csv", b"sep=;\ncaption;id\na;1\n", "has no column named prompt or text, but caption, id"),
    (".csv", b"prompt,split\na cube,dev\n", "line 2: split must be one of train, val, test, got 'dev'"),
    (".csv", b'prompt,id\n"a" cube,1\n', "line 2: not valid CSV"),
    (".csv", b",,\n,,\n", "has no column named prompt or text"),
    (".json", b'["a cube"] ["a cone"]', "line 1: not valid JSON .'.' after the end of the list"),
    (".json", b'["a cube",\n\n "a cone" "a ball"]', "line 3: not valid JSON .expected , or ], not"),
    (".json", '["\u200b\u2060"]'.encode(), r"train\[0\]: the prompt is empty"),
    (".csv", b"caption\na cube\n", "line 1: has no column named prompt or text, but caption"),
    (".csv", b"prompt\na cube, red\n", "line 2: has more columns than the header"),
    (".csv", b'prompt\n"a cube\n', "not valid CSV"),
    (".csv", b"prompt,split\na cube,\n,train\n", "line 3: the prompt is empty"),
    (".parquet", b"PAR1 no PAR1", "not an intact Parquet file"),
    (".parquet", as_parquet(ROWS)[:-20], "not an intact Parquet file"),
    (".parquet", as_parquet([{"caption": "a cube"}]), "has no column named prompt or text, but caption"),
    (".parquet", as_parquet([{"prompt": None}]), "row 1: a prompt must be a string, got NoneType"),
]


@pytest.mark.parametrize(("suffix", "data", "problem"), BAD, ids=range(len(BAD)))
def test_errors_name_the_file_and_the_line(tmp_path: Path, suffix: str, data: bytes, problem: str):
    path = write(tmp_path, suffix, data)
    with pytest.raises(ValueError, match=problem) as error:
        open_corpus(str(path))
    assert str(path) in str(error.value)


def test_an_unreadable_file_raises(tmp_path: Path):
    (tmp_path / "folder.txt").mkdir()
    for path in (tmp_path / "missing.txt", tmp_path / "missing.parquet", tmp_path / "folder.txt"):
        with pytest.raises(ValueError, match="cannot read") as error:
            open_corpus(str(path))
        assert str(path) in str(error.value)


def test_memory_is_bounded_for_any_line_length(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    with path.open("wb") as file:
        file.truncate(1 << 33)  # 8 GiB of NUL bytes, sparse: none on disk
    with pytest.raises(ValueError, match="line 1: longer than"):
        open_corpus(str(path))


# ---- saved tables -----------------------------------------------------------------------------


def test_a_saved_table_loads_unchanged(tmp_path: Path):
    table = tabulate([Entry(row["prompt"], row["split"], "here", row["id"]) for row in ROWS * 2], "mine")
    save_table(table, tmp_path / "saved.parquet")
    loaded = load_table(tmp_path / "saved.parquet")
    assert loaded is not None and loaded.name == "mine" and len(loaded) == 3
    assert [loaded[i] for i in range(3)] == [table[i] for i in range(3)]
    assert loaded.repeats.tolist() == [2, 0, 2] and list(loaded.trained) == [0, 2]
    assert [loaded.hold_out(0.5)[i] for i in range(3)] == [table.hold_out(0.5)[i] for i in range(3)]
    assert load_table(write(tmp_path, ".parquet", as_parquet(ROWS))) is None


def test_a_damaged_table_raises(tmp_path: Path):
    table = tabulate([Entry(f"prompt number {i}", "train", "here") for i in range(3000)], "mine")
    path = tmp_path / "saved.parquet"
    save_table(table, path)
    intact, random = path.read_bytes(), Random(0)
    texts = table.texts.to_pylist()
    for _ in range(100):
        path.write_bytes(damage(intact, random))
        try:
            loaded = load_table(path)
        except ValueError as error:
            assert str(path) in str(error) and "it again" in str(error)
        else:  # the damage hit bytes that do not matter
            assert loaded is None or loaded.texts.to_pylist() == texts


# ---- fuzzed files -----------------------------------------------------------------------------


def damage(data: bytes, random: Random) -> bytes:
    """Return the bytes with one to three random edits."""
    damaged = bytearray(data)
    for _ in range(random.randint(1, 3)):
        start = random.randrange(len(damaged) + 1)
        kind = random.randrange(6)
        if kind == 0:
            del damaged[start:]
        elif kind == 1 and start < len(damaged):
            damaged[start] ^= 1 << random.randrange(8)
        elif kind == 2:
            damaged[start:start] = random.randbytes(random.randint(1, 8))
        elif kind == 3:
            damaged[start:start] = random.choice([b"\0", b"\n", b'"', b"\xff", b"{", b"]", b",", b"\\u0000"])
        elif kind == 4:
            other = random.randrange(len(damaged) + 1)
            damaged[start:start] = damaged[min(start, other) : max(start, other)]
        else:
            damaged[start : start + random.randint(1, 40)] = b""
    return bytes(damaged)


def test_a_thousand_fuzzed_files_open_or_raise_one_sentence(tmp_path: Path):
    random = Random(7)
    good = [*FORMATS.values(), (".txt", b"a red cube\na cone\na caf\xc3\xa9\n" * 3)]
    good += [(".json", json.dumps({"train": ["a cube", "a cone"], "val": [], "test": ["a ball"]}).encode())]
    num_errors = 0
    for number in range(1000):
        suffix, data = good[number % len(good)]
        if number % 10 == 9:
            suffix = random.choice(list(READERS))  # contents of another format than the suffix
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(damage(data, random))
        try:
            corpus = open_corpus(str(path))
        except ValueError as error:
            num_errors += 1
            assert str(path) in str(error) and len(str(error)) < 600, error
        else:
            assert len(corpus) > 0
            for index in range(len(corpus)):
                prompt = corpus[index]
                assert prompt.text.strip() == prompt.text != "" and "\0" not in prompt.text
                assert prompt.id.replace("-", "").replace("_", "").isalnum()
    assert 200 < num_errors < 900
