"""A user's corpus, from encoded shards to scores; text that does not fit; encoding with two processes."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys

from tests.commands.runs import small
from tests.rooms import ROOT
from tests.tiny_sd import make_tiny_sd

PROMPTS = [
    {"prompt": "a red cube", "id": "first"},
    {"prompt": "a very blue cone on top of a big green ball", "id": "second", "split": "test"},
    {"prompt": "a very blue cone on top of a big green ball now", "id": "third"},
    {"prompt": "a torus", "id": "fourth", "split": "test"},
]


def results_of(folder, selection: str) -> dict:
    """The results of an evaluation of a part of the corpus."""
    (path,) = (folder / "evaluations").glob(f"{selection}/results.json")
    return json.loads(path.read_text())


def test_a_users_corpus_from_shards_to_scores(run, prior, tmp_path):
    corpus, text, folder = tmp_path / "mine.jsonl", tmp_path / "text", tmp_path / "run"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    encode = ("corpora", "encode", str(corpus), "--encoder", prior, "--output", str(text), "--device", "cpu")
    shown = run(*encode, "--views")
    assert shown.returncode == 0, shown.stderr
    assert "4 prompts, 5 sentences each: about " in shown.stdout and f"text.shards=[{text}]" in shown.stdout
    trained = run(
        *small(prior, folder, f"corpus={corpus}", f"text.shards=[{text}]", "views.direction_step_deg=0")
    )
    assert trained.returncode == 0, trained.stderr
    clip = f"evaluation.clip={ROOT / 'checkpoints' / 'shapes-clip'}"
    quick = (
        clip,
        "evaluation.views=2",
        "evaluation.turntable_frames=0",
        "evaluation.objects=0",
        "evaluation.grid=16",
    )
    judged = run("evaluate.py", str(folder), "--split", "heldout", *quick)
    assert judged.returncode == 0, judged.stderr
    results = results_of(folder, "split-heldout-*")
    near = [(row["text"], row["near_train"]) for row in results["prompts"]]
    assert near == [(PROMPTS[1]["prompt"], PROMPTS[2]["prompt"]), ("a torus", None)]
    assert list(results["by_split"]) == ["heldout", "heldout, unlike any trained"]
    assert results["chance"]["gallery"] == 4
    limited = run("evaluate.py", str(folder), "--limit", "1", "evaluation.gallery=prompts", *quick)
    assert limited.returncode == 0, limited.stderr
    results = results_of(folder, "limit-1-*")
    assert [row["id"] for row in results["prompts"]] == ["first"] and results["chance"]["gallery"] == 1
    for arguments, sentence in (
        (("--split", "dev"), "has no list named dev"),
        (("--split", "val"), "has no prompt in 'val'"),
        (("--limit", "0"), "--limit must be at least 1, got 0"),
        (("--prompt", "a ball", "--split", "train"), "--split train selects from the corpus: omit it"),
    ):
        failed = run("evaluate.py", str(folder), *arguments, clip)
        assert failed.returncode == 2 and sentence in failed.stderr and failed.stderr.count("\n") == 1


def test_text_that_does_not_fit_is_refused(run, prior, tmp_path):
    other, text = make_tiny_sd(tmp_path / "other", seed=1), tmp_path / "text"
    encoded = run("corpora", "encode", "shapes16", "--encoder", str(other), "--output", str(text), "--pooled")
    assert encoded.returncode == 0, encoded.stderr
    tokens = ("generator.text=tokens",)
    for chosen, sentence, *more in (
        (prior, f"{text} was encoded with {other}, not with the prior's {prior}; encode the corpus again"),
        (str(other), "text.shards have pooled vectors only, but this generator needs tokens", *tokens),
        (prior, "'nowhere' cannot be loaded", "text.shards=[]", "text.encoder=nowhere"),
    ):
        failed = run(*small(chosen, tmp_path / "run", f"text.shards=[{text}]", *more))
        assert failed.returncode == 2 and sentence in failed.stderr, failed.stderr
        assert failed.stderr.strip().count("\n") == 0 and not (tmp_path / "run").exists()
    pooled = run(*small(str(other), tmp_path / "run", f"text.shards=[{text}]", "trainer.steps=2"))
    assert pooled.returncode == 0, pooled.stderr


def test_two_processes_encode_together_and_stop_together(prior, tmp_path):
    """A real launch: the same bytes as one process writes; an error on one is one sentence."""
    text = [tmp_path / name for name in ("one", "two")]
    command = ["-m", "corpora", "encode", "shapes16", "--encoder", prior, "--prompts-per-shard", "3"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 240}
    alone = subprocess.run([sys.executable, *command, "--device", "cpu", "--output", str(text[0])], **options)
    both = subprocess.run([sys.executable, *launch, "--device", "cpu", "--output", str(text[1])], **options)
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr[-2000:]
    files = [path for path in text[0].rglob("*") if path.is_file() and path.name != ".lock"]
    names = sorted(str(path.relative_to(text[0])) for path in files)
    assert len(names) == 17 and all(filecmp.cmp(text[0] / name, text[1] / name, False) for name in names)
    other = [*launch, "--device", "cpu", "--output", str(text[1]), "--dtype", "float16"]
    failed = subprocess.run([sys.executable, *other], **options)
    sentences = [line for line in failed.stderr.splitlines() if line.startswith("python -m corpora: error: ")]
    assert failed.returncode != 0 and len(sentences) == 1
    assert "was started with dtype bfloat16" in sentences[0]
    assert "Traceback" not in failed.stderr.partition("torch/distributed")[0]
