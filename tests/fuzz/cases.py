"""Commands on damaged input, one for each kind of thing that a command reads."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from amortized.commands.main import main
from tests.commands.runs import small
from tests.fuzz.mutations import VALUES, damaged_copy
from tests.rooms import ROOT
from tests.tiny_sd import make_tiny_sd

STATUSES = (0, 1, 2, 75)
HANG_S = 30
MEMORY_LIMIT = 4 * 2**30
DRAW = ["--views", "1", "--size", "8", "--frames", "0", "--device", "cpu"]
ROWS = [
    {"id": f"id{i}", "prompt": f"a red cube {i}", "split": "train" if i % 3 else "test"} for i in range(20)
]


@dataclass(frozen=True)
class Originals:
    """Undamaged input, made once."""

    folder: Path

    @property
    def prior(self) -> Path:
        return self.folder / "prior"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def corpora(self) -> list[Path]:
        return sorted((self.folder / "corpora").iterdir())

    @property
    def preset(self) -> Path:
        return self.folder / "preset.yaml"


def make_originals(folder: Path) -> Originals:
    """Train a run of four steps, export it, encode a corpus and write it in every format."""
    originals = Originals(folder)
    make_tiny_sd(originals.prior, prediction_type="v_prediction")
    assert main(["train", *small(str(originals.prior), originals.run, "device=cpu")[1:]]) == 0
    assert main(["export", str(originals.run), str(originals.export)]) == 0
    encode = ["shapes16", "--encoder", str(originals.prior), "--output", str(originals.shards), "--views"]
    assert main(["encode", *encode, "--prompts-per-shard", "4", "--device", "cpu"]) == 0
    (folder / "corpora").mkdir()
    texts = [row["prompt"] for row in ROWS]
    files = {
        "lines.txt": "\n".join(texts),
        "list.json": json.dumps(texts),
        "lists.json": json.dumps({"train": texts, "test": texts[:3]}),
        "rows.jsonl": "\n".join(map(json.dumps, ROWS)),
        "rows.csv": "id,prompt,split\n" + "\n".join(",".join(row.values()) for row in ROWS),
    }
    for name, text in files.items():
        (folder / "corpora" / name).write_text(text, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "corpora/rows.parquet")
    shutil.copy(ROOT / "configs/quickstart.yaml", originals.preset)
    return originals


# ---- kinds: each makes the arguments of a command on damaged input, and says what it damaged -------------

Case = tuple[list[str], str]


def train(originals: Originals, work: Path, *overrides: str) -> list[str]:
    return ["train", *small(str(originals.prior), work / "out", "device=cpu", *overrides)[1:]]


def settings(originals: Originals, work: Path, random: Random) -> Case:
    """A random key with a random value."""
    keys = random.sample(setting_keys(), random.choice([1, 1, 2]))
    values = [
        *map(str, VALUES),
        "1e-30",
        "[1, 2, 3]",
        "{a: 1}",
        "true",
        "yes",
        "0.5",
        "100000",
        "-0.0",
        "~/x",
    ]
    chosen = [f"{key}={random.choice(values)}" for key in keys]
    return [*train(originals, work), "--dry-run", *chosen], " ".join(chosen)[:300]


def setting_keys() -> list[str]:
    from amortized.commands.compose import RunConfig
    from amortized.config import config_to_dict, load_config
    from amortized.config.presets import flatten

    config = load_config(RunConfig, ROOT / "configs/quickstart.yaml", ["environment.name=hash"])
    return [*flatten(config_to_dict(config)), "prompt", "nonsense.key", "generator", "trainer"]


def preset(originals: Originals, work: Path, random: Random) -> Case:
    done = damaged_copy(originals.preset, work / "preset.yaml", random)
    return ["train", str(work / "preset.yaml"), *train(originals, work)[2:], "--dry-run"], done


def corpus(originals: Originals, work: Path, random: Random) -> Case:
    original = random.choice(originals.corpora)
    done = damaged_copy(original, work / original.name, random)
    path = str(work / original.name)
    if random.random() < 0.7:
        return ["corpora", "show", path], done
    return ["corpora", "convert", path, "--output", str(work / "converted.parquet")], done


def prior(originals: Originals, work: Path, random: Random) -> Case:
    done = damaged_copy(originals.prior, work / "prior", random)
    return [*train(originals, work, f"prior={work / 'prior'}"), "--dry-run"], done


def clip(originals: Originals, work: Path, random: Random) -> Case:
    done = damaged_copy(ROOT / "checkpoints/shapes-clip", work / "clip", random)
    quick = [
        "evaluation.views=1",
        "evaluation.turntable_frames=0",
        "evaluation.objects=0",
        "evaluation.grid=4",
        "evaluation.image_size=8",
    ]
    where = ["--limit", "1", "--output", str(work / "out")]
    return ["evaluate", str(originals.run), f"evaluation.clip={work / 'clip'}", *quick, *where], done


def run(originals: Originals, work: Path, random: Random) -> Case:
    done = damaged_copy(originals.run, work / "run", random)
    return _use_run(originals, work, random), done


def checkpoint(originals: Originals, work: Path, random: Random) -> Case:
    shutil.copytree(originals.run, work / "run")
    shutil.rmtree(work / "run/checkpoints")
    done = damaged_copy(originals.run / "checkpoints", work / "run/checkpoints", random)
    return _use_run(originals, work, random), done


def _use_run(originals: Originals, work: Path, random: Random) -> list[str]:
    path = str(work / "run")
    if random.random() < 0.4:
        return train(originals, work, f"output={path}", "trainer.steps=5")[:2] + [
            *train(originals, work)[2:],
            f"output={path}",
        ]
    if random.random() < 0.2:
        return ["export", path, str(work / "exported")]
    return ["generate", path, "a red cube", "--output", str(work / "out"), *DRAW]


def export(originals: Originals, work: Path, random: Random) -> Case:
    done = damaged_copy(originals.export, work / "export", random)
    return ["generate", str(work / "export"), "a red cube", "--output", str(work / "out"), *DRAW], done


def shards(originals: Originals, work: Path, random: Random) -> Case:
    done = damaged_copy(originals.shards, work / "shards", random)
    return train(originals, work, f"text.shards=[{work / 'shards'}]", "trainer.steps=1"), done


KINDS: dict[str, Callable[[Originals, Path, Random], Case]] = {
    function.__name__: function
    for function in (settings, preset, corpus, prior, clip, run, checkpoint, export, shards)
}


# ---- outcomes --------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A command that does not end."""


@dataclass(frozen=True)
class Outcome:
    """What a command did on damaged input; `failure` is empty if that was right."""

    kind: str
    seed: int
    damage: str
    arguments: list[str]
    status: int
    stderr: str
    seconds: float
    failure: str


def run_case(kind: str, seed: int, originals: Originals, work: Path) -> Outcome:
    """Damage a copy, run the command on it in this process, and judge the outcome."""
    random = Random(f"{kind} {seed}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    arguments, damage = KINDS[kind](originals, work, random)
    stdout, stderr = io.StringIO(), io.StringIO()
    failure, status, begin = "", 0, time.monotonic()
    try:
        with alarm(HANG_S), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = main(arguments)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except Hang:
        failure = "hang"
    except BaseException:
        failure = f"traceback: {traceback.format_exc()[-1500:]}"
    errors = [line for line in stderr.getvalue().splitlines() if ": error: " in line]
    if not failure and status not in STATUSES:
        failure = f"status {status}"
    elif not failure and "Traceback (most recent call last)" in stderr.getvalue():
        failure = "a traceback was printed"
    elif not failure and status == 2 and len(errors) != 1:
        failure = f"{len(errors)} sentences"
    elif not failure and any(word in stderr.getvalue() for word in ("out of memory", "MemoryError")):
        failure = "memory"
    elif not failure and "unexpected error" in stderr.getvalue():
        failure = "an unexpected error instead of a sentence"
    elif not failure and errors and len(errors[0]) > 1500:
        failure = "a sentence of over 1,500 characters"
    return Outcome(
        kind, seed, damage, arguments, status, stderr.getvalue()[-1500:], time.monotonic() - begin, failure
    )


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Context: raise Hang in the main thread after so many seconds."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_cases(
    kind: str, seeds: Sequence[int], originals: Originals, work: Path
) -> tuple[list[Outcome], float]:
    """The outcomes of a kind, and by how many MiB the process's peak memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    here = Path.cwd()
    os.chdir(ROOT)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT, limits[1]))  # the machine is for others too
    try:
        outcomes = [run_case(kind, seed, originals, work / kind) for seed in seeds]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir(here)
    return outcomes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
