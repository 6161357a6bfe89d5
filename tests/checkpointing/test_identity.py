"""A run is what it is, wherever it runs: its copies and its corpus are its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from amortized.checkpointing import CheckpointError, check_corpus, list_checkpoints, open_run
from amortized.checkpointing.identity import corpus_digest, load_identity
from amortized.parallel import World
from amortized.types import Prompt
from corpora import prompt_list
from tests.checkpointing.saving import META, checkpoints_in, same, state_of

SETTINGS = {"seed": 0, "corpus": "mine", "trainer.steps": 5, "checkpointing.keep": 2, "device": "cpu"}
TEXTS = ("a red cube", "a blue cone", "a green ball")


@dataclass
class Trained:
    """The step that a start resumed from, None if there was none, and the messages of its uploads."""

    resumed: int | None
    problems: list[str]


def train(folder: Path, *steps: int, url: Path, texts=TEXTS, resume="auto", **changed) -> Trained:
    """Start a run, or resume it, and save checkpoints; `changed` are settings with __ for a dot."""
    flat = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    config: dict = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (config.setdefault(section, {}) if section else config)[name] = value
    corpus = prompt_list(texts, "mine")
    checkpoints = checkpoints_in(folder / "checkpoints", keep=2, upload=f"file://{url}")
    with open_run(folder, json.dumps(config), World(), resume=resume, corpus=corpus):
        state = state_of(0)
        meta = checkpoints.restore(state, "a prior", print)
        assert meta is None or same(state, state_of(meta.step))
        for step in steps:
            checkpoints.save(state_of(step), replace(META, step=step))
        checkpoints.wait()
        problems = checkpoints.pop_messages(last=True)
        checkpoints.close()
    return Trained(meta and meta.step, problems)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


DIFFERENT = {
    "seed": {"seed": 1},
    "corpus": {"corpus": "yours"},
    "more steps": {"trainer__steps": 6},
    "one more setting": {"guidance__scale": 7.5},
    "text": {"texts": ("a red cube", "a blue cone", "a green cube")},
    "order": {"texts": TEXTS[::-1]},
    "fewer prompts": {"texts": TEXTS[:2]},
}


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("has_checkpoints", [False, True])
def test_another_run_is_refused_and_changes_nothing(tmp_path, kind, has_checkpoints):
    url = tmp_path / "bucket"
    train(tmp_path / "one", 1, 2, url=url)
    before = contents(url)
    if has_checkpoints:
        train(tmp_path / "two", 7, url=tmp_path / "other", **DIFFERENT[kind])
    with pytest.raises(
        CheckpointError, match="holds the checkpoints of another run .*choose another"
    ) as error:
        train(tmp_path / "two", 8, 9, url=url, **DIFFERENT[kind])
    assert "\n" not in str(error.value) and contents(url) == before
    steps = [path.name for path in list_checkpoints(tmp_path / "two/checkpoints")]
    assert steps == (["step_000007"] if has_checkpoints else [])
    assert train(tmp_path / "one", 3, url=url).problems == []


@pytest.mark.parametrize("changed", [{}, {"device": "cuda"}, {"checkpointing__keep": 9}, {"output": "there"}])
def test_the_same_run_resumes_on_another_machine(tmp_path, changed):
    url = tmp_path / "bucket"
    train(tmp_path / "lost", 1, 2, url=url)
    new = train(tmp_path / "new", 3, url=url, **changed)
    assert new.resumed == 2 and new.problems == []
    assert [path.name for path in list_checkpoints(url)] == ["step_000002", "step_000003"]
    one, other = (load_identity(tmp_path / name) for name in ("lost", "new"))
    assert one is not None and other is not None and one.id == other.id


def test_a_run_with_its_own_checkpoints_is_not_another_one_with_equal_settings(tmp_path):
    train(tmp_path / "one", 1, url=tmp_path / "bucket")
    train(tmp_path / "two", 1, url=tmp_path / "other")
    with pytest.raises(CheckpointError, match="another run .this one has other checkpoints already"):
        train(tmp_path / "two", 2, url=tmp_path / "bucket")


def test_changed_settings_follow_the_run(tmp_path):
    """After `--resume changed`, a new machine needs the new settings, not the old ones."""
    url = tmp_path / "bucket"
    train(tmp_path / "run", 1, url=url)
    train(tmp_path / "run", 2, url=url, resume="changed", trainer__steps=9)
    with pytest.raises(CheckpointError, match="another run .trainer.steps was 9, now 5"):
        train(tmp_path / "old", url=url)
    assert train(tmp_path / "new", url=url, trainer__steps=9).resumed == 2


UNKNOWN = [None, "", "{", "[]", '{"format": 1}', '{"format": 2, "id": "0123456789abcdef"}', "x" * 3_000_000]
UNKNOWN += ['{"format": 1, "id": "../../x", "corpus": "", "settings": {}}']


@pytest.mark.parametrize("text", UNKNOWN, ids=lambda text: str(text)[:20])
def test_copies_of_an_unknown_run_are_refused(tmp_path, text):
    url = tmp_path / "bucket"
    train(tmp_path / "one", 1, 2, url=url)
    (url / "run.json").unlink()
    if text is not None:
        (url / "run.json").write_text(text)
    before = contents(url)
    for run in ("one", "two"):
        with pytest.raises(CheckpointError, match="holds checkpoints, but not whose they are"):
            train(tmp_path / run, 3, url=url)
    assert contents(url) == before
    for path in list_checkpoints(url):  # without copies it is free
        shutil.rmtree(path)
    assert train(tmp_path / "one", 3, url=url).problems == []


@pytest.mark.parametrize("owner", ["0123456789abcdef", "", None])
def test_rotation_and_download_leave_foreign_copies(tmp_path, owner):
    url = tmp_path / "bucket"
    train(tmp_path / "run", 2, url=url)
    for step in (1, 9):  # placed there by hand
        shutil.copytree(url / "step_000002", url / f"step_{step:06d}")
        path = url / f"step_{step:06d}/state.json"
        state = json.loads(path.read_text()) | {"step": step, "run": owner}
        path.write_text(json.dumps({k: v for k, v in state.items() if v is not None}))
    before = {name: contents(url / name) for name in ("step_000001", "step_000009")}
    train(tmp_path / "run", 3, 4, 5, url=url)
    (problem,) = train(tmp_path / "run", 9, url=url).problems
    assert "another run's checkpoint has this name" in problem
    names = [path.name for path in list_checkpoints(url)]
    assert names == ["step_000001", "step_000004", "step_000005", "step_000009"]
    assert {name: contents(url / name) for name in before} == before
    assert train(tmp_path / "new", url=url).resumed == 5


def test_a_url_that_another_run_takes_over_gets_no_more_copies(tmp_path):
    url = tmp_path / "bucket"
    checkpoints = checkpoints_in(tmp_path / "run/checkpoints", upload=f"file://{url}")
    checkpoints.restore(state_of(0), "a prior", print)
    data = json.loads((url / "run.json").read_text())
    (url / "run.json").write_text(json.dumps(data | {"id": "0123456789abcdef"}))
    checkpoints.save(state_of(1), replace(META, step=1))
    checkpoints.wait()
    (message,) = checkpoints.pop_messages(last=True)
    assert "another run uploads to this URL" in message and list_checkpoints(url) == []


@pytest.mark.parametrize("url", ["nowhere://user:secret@host/x?sig=secret", "s4://:secret@host/x"])
def test_credentials_are_not_printed(tmp_path, url):
    with pytest.raises(ValueError, match="cannot open checkpointing.upload=") as error:
        checkpoints_in(tmp_path, upload=url)
    assert "secret" not in str(error.value)


# ---- the corpus -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """A corpus of given prompts."""

    prompts: tuple[Prompt, ...]
    trained: tuple[int, ...]
    repeats: tuple[int, ...] | None = None
    name: str = "mine"

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def truth(self, prompt: Prompt) -> None:
        return None

    def distractors(self) -> list[str]:
        return []


def listed(*texts: str, trained=(0, 1), repeats=None, splits=("train", "train", "heldout")) -> Listed:
    prompts = [Prompt(id=f"{i}", text=t, split=splits[i % 3]) for i, t in enumerate(texts)]
    return Listed(tuple(prompts), trained, repeats)


def test_the_digest_changes_with_every_text_split_and_order():
    variants = [
        listed("a", "b", "c"),
        listed("b", "a", "c"),
        listed("a", "b", "d"),
        listed("a", "bc", ""),
        listed("ab", "", "c"),
        listed("a", "b"),
        listed("a", "b", "c", "d"),
        listed("a", "b", "c", trained=(0,)),
        listed("a", "b", "c", splits=("train", "heldout", "train")),
        listed("a", "b", "c", repeats=(1, 1, 1)),
        listed("a", "b", "c", repeats=(1, 2, 1)),
        listed("a", "b", "c\udc80"),
        listed("a\n", "b", "c"),
    ]
    assert len({corpus_digest(corpus) for corpus in variants}) == len(variants)
    again = replace(variants[0], name="other", trained=np.array([0, 1]))
    assert corpus_digest(again) == corpus_digest(variants[0])


@pytest.mark.parametrize("kind", ["text", "order", "fewer prompts"])
def test_a_corpus_that_changed_under_a_run_is_refused_unless_accepted(tmp_path, kind):
    old, new = prompt_list(TEXTS, "mine"), prompt_list(DIFFERENT[kind]["texts"], "mine")

    def start(corpus, resume="auto") -> list[str]:
        with open_run(tmp_path / "run", "seed: 0", World(), resume=resume, corpus=corpus) as notes:
            return notes

    assert start(old) == [] and start(old) == []
    check_corpus(tmp_path / "run", old)
    files = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="corpus mine has other prompts .* --resume changed"):
        start(new)
    with pytest.raises(ValueError, match="corpus mine has other prompts .* that .*run trained on"):
        check_corpus(tmp_path / "run", new)
    assert contents(tmp_path / "run") == files
    (note,) = start(new, "changed")
    assert "resuming with changed prompts" in note and start(new) == []
    check_corpus(tmp_path / "run", new)


def test_a_run_of_the_previous_release_gets_an_identity(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0")
    (run / ".lock").touch()
    check_corpus(run, prompt_list(TEXTS, "mine"))
    with open_run(run, "seed: 0", World(), corpus=prompt_list(TEXTS, "mine")) as notes:
        assert notes == []
    identity = load_identity(run)
    assert identity is not None and identity.corpus == corpus_digest(prompt_list(TEXTS, "mine"))
