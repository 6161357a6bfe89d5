"""The field's public corpora: what their files are, and how they are taken in.

The files are not ours to ship. `import_corpus` reads the public one, makes sure that it is the one that
papers speak of, and keeps it as a Parquet file, one row a different prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amortized.files import atomic_path
from corpora.files import entries_of
from corpora.nearness import near_duplicates
from corpora.table import SPLITS, Entry, PromptTable, listed_for_training, tabulate

FORMAT = "1"
TYPES = {"text": "large_string", "splits": "uint8", "repeats": "int32", "key": "uint64"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A public file of prompts."""

    file: str
    entries: Mapping[str, int] | None  # in each of its lists, repetitions counted; None: not known
    sha256: str | None = None  # None: not known, the file is taken by its structure
    origin: str = "load/ of ScaleDreamer"
    split: str | None = None  # of a file that has no lists of its own
    built_in: bool = False  # made by a grammar here: nothing needs keeping


def _three(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


def _t3bench(name: str, sha256: str) -> Published:
    return Published(
        file=f"prompt_{name}.txt",
        entries={"test": 100},
        sha256=sha256,
        origin="data/ of T3Bench",
        split="test",
    )


PUBLISHED: Mapping[str, Published] = {
    "mg15": Published(
        file="magic3d_15_prompt_library.json",
        entries=_three(15, 15, 15),
        sha256="c0cb81ee7130aee58760c5b019f4e8fa0178716b5438ec8fcc3d067110bd22e2",
    ),
    "df415": Published(
        file="dreamfusion_415_prompt_library.json",
        entries=_three(415, 16, 415),
        sha256="ec1fb26bd30a03620faf559c172c2a465e957fa5e6a34faf1a183e9eaa2940d6",
    ),
    "at2520": Published(
        file="att3d_2520_prompt_library.json",
        entries=_three(2520, 56, 2520),
        sha256="eea8423cb5e244df3a475cd29f7d0400b959f1d1deb5dcd3bc901625f23cdb3b",
        built_in=True,
    ),
    "dl17k": Published(
        file="instant3d_17000_prompt_library.json",
        entries=_three(17_241, 100, 100),
        sha256="dc4e3bdc863a568b0a26f0e765b4b3e17be56a0bc8f790dbbdaa5b40a55f2cef",
    ),
    "cp100k": Published(file="cap3d_100k_prompt_library.json", entries=None),
    "t3bench-single": _t3bench("single", "f396c0c12278340858e85c95258ecb6d39eca966ee34cab569a8ae56a414a6f6"),
    "t3bench-surr": _t3bench("surr", "2af27b4fbc59bfd3f36b2dca19fab60ad68f37b88b28e57746b91314c00d0926"),
    "t3bench-multi": _t3bench("multi", "712af8080c29b425ee3d992976e77ca21ac60979ec160e2ba0b662aa503e2173"),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an imported file holds."""

    sha256: str
    entries: Mapping[str, int]  # of each list
    unique: Mapping[str, int]  # different ones of each list
    overlaps: Mapping[tuple[str, str], int]  # different prompts that two lists share
    most_repeated: tuple[str, int]  # of the training list
    near: Mapping[str, tuple[str, float]]  # prompts of other lists that training nearly has

    def __str__(self) -> str:
        lines = [f"SHA-256 {self.sha256}"]
        for split, entries in self.entries.items():
            lines.append(f"{split:>6}: {entries:,} prompts, {self.unique[split]:,} different")
        text, times = self.most_repeated
        if times > 1:
            lines.append(f"the most repeated, {times} times: {text}")
        for (one, other), shared in self.overlaps.items():
            lines.append(f"{shared:,} of the {self.unique[other]:,} of {other} are also in {one}")
        if self.near:
            lines.append(f"{len(self.near):,} more are nearly in train; the most alike:")
            pairs = sorted(self.near.items(), key=lambda pair: -pair[1][1])
            lines += [f"  {alike:.2f}  {text}  ~  {seen}" for text, (seen, alike) in pairs[:3]]
        return "\n".join(lines)


def import_corpus(name: str, path: Path, folder: Path) -> tuple[PromptTable, Report]:
    """The public file at `path`, checked, and kept in `folder` unless it is built in.

    Raises ValueError where it is not the published file, or is no list of prompts.
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"'{name}' is no published corpus: there are {', '.join(PUBLISHED)}; "
            f"a file of your own needs no import: corpus={path}"
        )
    known = PUBLISHED[name]
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give {known.file}") from error
    if known.sha256 is not None and sha256 != known.sha256:
        raise ValueError(
            f"{path}: not the published {known.file} (SHA-256 {sha256}, expected {known.sha256}); "
            f"to use it all the same, name the file: corpus={path}"
        )
    listed = {split: 0 for split in SPLITS}

    def counted() -> Iterable[Entry]:
        for entry in entries_of(path):
            entry = entry._replace(split=known.split or entry.split)
            listed[entry.split] += 1
            yield entry

    table = tabulate(counted(), name)
    entries = {split: number for split, number in listed.items() if number}
    if known.entries is not None and entries != known.entries:
        raise ValueError(f"{path}: holds {entries} prompts, expected {dict(known.entries)}")
    if known.entries is None and set(entries) != set(SPLITS):
        raise ValueError(f"{path}: must hold the lists {', '.join(SPLITS)}, has {', '.join(entries)}")
    if not known.built_in:
        save_table(table, folder / f"{name}.parquet", sha256=sha256)
    return table, _report(table, entries, sha256)


def _report(table: PromptTable, entries: Mapping[str, int], sha256: str) -> Report:
    rows = {split: table.listed(split) for split in entries}
    pairs = [(one, other) for one in rows for other in rows if SPLITS.index(one) < SPLITS.index(other)]
    elsewhere = np.flatnonzero(table.splits & 1 == 0)
    most = int(table.repeats.argmax())
    return Report(
        sha256=sha256,
        entries=entries,
        unique={split: len(found) for split, found in rows.items()},
        overlaps={(a, b): len(np.intersect1d(rows[a], rows[b])) for a, b in pairs},
        most_repeated=(table[most].text, int(table.repeats[most])),
        near=near_duplicates(
            table.texts.take(elsewhere).to_pylist(), table.texts.take(table.listed("train")).to_pylist()
        ),
    )


def save_table(table: PromptTable, path: Path, **facts: str) -> None:
    """Keep a table as a Parquet file, whole or not at all; `facts` are kept beside it."""
    columns = {"text": table.texts, "splits": table.splits, "repeats": table.repeats, "key": table.keys}
    if table.ids is not None:
        columns["id"] = table.ids
    metadata = {"amortized3d": json.dumps({"format": FORMAT, "name": table.name, **facts})}
    with atomic_path(path) as temporary:
        pq.write_table(
            pa.table(columns).replace_schema_metadata(metadata), temporary, compression="zstd",
            write_page_checksum=True,
        )  # fmt: skip


def load_table(path: Path) -> PromptTable | None:
    """The table that `store` kept; None for a Parquet file of other columns. Raises ValueError if damaged."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, memory_map=True) as file:
            found = (file.schema_arrow.metadata or {}).get(b"amortized3d")
            if found is None:
                return None
            facts = json.loads(found)
            name, version = str(facts["name"]), facts["format"]
            if version != FORMAT:
                raise ValueError(f"it is of format {version}, not {FORMAT}")
            columns = file.read()
        kinds = TYPES | ({"id": "large_string"} if "id" in columns.column_names else {})
        if any(columns[column].type != kind or columns[column].null_count for column, kind in kinds.items()):
            raise ValueError("its columns are not those of a kept corpus")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a whole Parquet file ({problem}); make it again") from error
    splits = columns["splits"].to_numpy()
    return PromptTable(
        name=name,
        texts=columns["text"].combine_chunks(),
        splits=splits,
        repeats=columns["repeats"].to_numpy(),
        keys=columns["key"].to_numpy(),
        ids=columns["id"].combine_chunks() if "id" in columns.column_names else None,
        trained=listed_for_training(splits),
    )
