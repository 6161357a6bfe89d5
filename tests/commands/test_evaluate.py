"""Evaluation: which prompts, their ground truth and gallery, and what is refused."""

from __future__ import annotations

import json

import pytest

from amortized.commands.evaluation import Selection, choose_prompts, mark_near_duplicates
from amortized.evaluation import PromptRow
from corpora import prompt_list
from tests.rooms import ROOT


def test_one_prompt_is_scored(run, trained, tmp_path):
    judged = run(
        "evaluate.py",
        str(trained),
        "--prompt",
        "a red cube",
        "--output",
        str(tmp_path / "one"),
        f"evaluation.clip={ROOT / 'checkpoints' / 'shapes-clip'}",
        "evaluation.views=2",
        "evaluation.turntable_frames=4",
        "evaluation.objects=1",
        "evaluation.grid=16",
    )
    assert judged.returncode == 0, judged.stderr
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert {"clip_similarity", "recall_at_1", "iou", "color_error"} <= set(results["metrics"])
    assert results["chance"]["gallery"] >= 128 and results["prompts"][0]["text"] == "a red cube"
    assert (tmp_path / "one" / "index.html").exists()
    assert (tmp_path / "one" / "results.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "holds no run"),
        (["{run}", "--prompts", "nowhere.txt"], "cannot read nowhere.txt"),
        (["{run}", "--prompts", "t3bench"], "corpus must be one of"),
        (["{run}", "corpus=df415"], "corpus=df415 would change what the run trained: to evaluate other"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(run, tmp_path, arguments, sentence):
    (tmp_path / "config.yaml").write_text("corpus: shapes16\noutput: x\nprior: checkpoints/shapes-prior\n")
    failed = run("evaluate.py", *(a.format(run=tmp_path) for a in arguments))
    assert failed.returncode == 2 and sentence in failed.stderr and "Traceback" not in failed.stderr


def test_prompts_are_taken_evenly():
    corpus = prompt_list([f"prompt {i}" for i in range(10)], "mine")

    def chosen(limit: int | None) -> list[int]:
        return [int(prompt.text.split()[1]) for prompt in choose_prompts(corpus, Selection(limit=limit))]

    assert chosen(None) == chosen(20) == list(range(10))
    assert chosen(4) == [0, 2, 5, 7]


def test_only_held_out_prompts_have_a_near_duplicate():
    def row(text: str, split: str) -> PromptRow:
        return PromptRow(id=text, text=text, split=split, clip_similarity=0.5, recall_at_1=1.0)

    corpus = prompt_list(["a red cube on the table", "a blue cone"], "mine")
    rows = [row("a red cube on the table", "train"), row("A red cube on the table.", "heldout")]
    rows += [row("a blue cone", "heldout"), row("a torus", "heldout")]
    found = [(one.split, one.near_train) for one in mark_near_duplicates(rows, corpus)]
    near = "a red cube on the table"
    # A prompt of --prompts may be a training prompt.
    assert found == [("train", None), ("heldout", near), ("train", None), ("heldout", None)]
