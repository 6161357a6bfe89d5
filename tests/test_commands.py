"""The commands as a user types them, on a tiny random prior."""

from __future__ import annotations

import filecmp
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from amortized.training.export import main as export_main
from generators.pretrained import from_pretrained

import evaluate
import train
from amortized.checkpointing import load_generator
from amortized.cli import preset_paths
from amortized.commands.compose import RunConfig
from amortized.config import load_config
from amortized.evaluation import PromptRow
from amortized.guidance import METHODS, published
from amortized.types import TextCondition
from corpora import prompt_list
from corpora.__main__ import main as corpora_main
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capfd, monkeypatch):
    """Calls a command's main as its console script would; a process each would mostly import torch."""
    monkeypatch.chdir(ROOT)

    def call(script: str, *arguments: str) -> Finished:
        capfd.readouterr()
        try:
            mains = {
                "train.py": train.main,
                "evaluate.py": evaluate.main,
                "corpora": corpora_main,
                "export": export_main,
            }
            status = mains[script](list(arguments))
        except SystemExit as exit:
            status = exit.code
        captured = capfd.readouterr()
        return Finished(int(status or 0), captured.out, captured.err)

    return call


def test_the_commands_are_scripts():
    """One real process: status, one sentence, no traceback."""
    failed = subprocess.run(
        [sys.executable, "train.py", "configs/quickstart.yaml", "trainer.stps=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert failed.returncode == 2
    assert failed.stderr.strip() == (
        "train.py: error: unknown key trainer.stps in the overrides; did you mean trainer.steps?"
    )


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("prior"), prediction_type="v_prediction"))


def small(prior: str, output: Path, *more: str) -> list[str]:
    return [
        "train.py",
        "configs/quickstart.yaml",
        f"prior={prior}",
        f"output={output}",
        "trainer.steps=4",
        "trainer.prompts_per_process=2",
        "trainer.render_size=16",
        "checkpointing.every=2",
        "monitoring.preview_prompts=1",
        *more,
    ]


def test_help_explains_overrides_and_lists_presets(run):
    shown = run("train.py", "--help")
    assert shown.returncode == 0
    assert (
        "KEY=VALUE" in shown.stdout
        and "configs/quickstart.yaml" in shown.stdout
        and "configs/methods/dsd.yaml" in shown.stdout
        and "--dry-run" in shown.stdout
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.stps=3", "did you mean trainer.steps?"),
        ("trainer.steps=many", "trainer.steps must be an integer, got 'many'"),
        ("trainer.steps=0", "trainer.steps must be at least 1, got 0"),
        ("guidance.method=sdf", "guidance.method must be one of"),
        ("generator.name=nerf", "generator.name must be"),
        ("losses.sparsity=[1,2,3]", "losses.sparsity: a schedule is"),
        ("corpus=nowhere", "corpus must be one of"),
        ("prior=checkpoints/nowhere", "make weights"),
        ("trainer.steps", "KEY=VALUE"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(run, tmp_path, override, sentence):
    failed = run("train.py", "configs/quickstart.yaml", f"output={tmp_path / 'run'}", override)
    assert failed.returncode == 2
    assert sentence in failed.stderr and "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dry_run_shows_what_would_be_and_writes_nothing(run, prior, tmp_path):
    shown = run(*small(prior, tmp_path / "run", "--dry-run"))
    assert shown.returncode == 0, shown.stderr
    for part in (
        "guidance_scale: [1.5, 1.25]",
        "HyperINGP",
        "parameters",
        "MiB",
        "denoiser: 6 images a step",
    ):
        assert part in shown.stdout, part
    assert not (tmp_path / "run").exists()


def test_train_refuse_resume_evaluate(run, prior, tmp_path):
    folder = tmp_path / "run"
    trained = run(*small(prior, folder))
    assert trained.returncode == 0, trained.stderr
    for name in ("config.yaml", "log.jsonl", "tensorboard", "previews", "checkpoints"):
        assert (folder / name).exists(), name
    refused = run(*small(prior, folder, "--resume", "never"))
    assert refused.returncode == 2 and "already holds a run" in refused.stderr
    other = run(*small(prior, folder, "seed=5"))
    assert other.returncode == 2 and "seed was 0, now 5" in other.stderr
    again = run(*small(prior, folder))
    assert again.returncode == 0 and "trained at step 4" in again.stdout
    exported = run("export", str(folder), str(tmp_path / "exported"))
    assert exported.returncode == 0 and "step_000004" in exported.stdout, exported.stderr
    check_exported(folder, tmp_path / "exported")
    assert run("export", str(folder), str(tmp_path / "exported")).returncode == 2
    clip = ROOT / "checkpoints" / "shapes-clip"
    judged = run(
        "evaluate.py",
        str(folder),
        "--prompt",
        "a red cube",
        f"evaluation.clip={clip}",
        "evaluation.views=2",
        "evaluation.turntable_frames=4",
        "evaluation.grid=16",
    )
    assert judged.returncode == 0, judged.stderr
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert {"clip_similarity", "recall_at_1", "iou", "color_error"} <= set(results["metrics"])
    assert results["chance"]["gallery"] >= 128 and results["prompts"][0]["text"] == "a red cube"
    assert (folder / "evaluation" / "index.html").exists() and (
        folder / "evaluation" / "results.csv"
    ).exists()


def test_a_signal_ends_with_a_status_that_schedulers_start_again(run, prior, tmp_path):
    """A real process: saved, 75; and the same command goes on to the end."""
    arguments = small(prior, tmp_path / "run", "trainer.steps=60", "checkpointing.every=1000")
    going = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    log, start = tmp_path / "run/log.jsonl", time.monotonic()
    while not (log.exists() and log.stat().st_size > 0):
        assert time.monotonic() - start < 120 and going.poll() is None, "the run did not begin"
        time.sleep(0.02)
    going.send_signal(signal.SIGUSR1)
    told, _ = going.communicate(timeout=60)
    assert going.returncode == 75 and "; the same command goes on" in told
    again = run(*arguments)
    assert again.returncode == 0 and "trained at step 60" in again.stdout, again.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 61))


def check_exported(folder: Path, exported: Path) -> None:
    """What comes out of the folder is the run's generator, its averaged weights."""
    config = load_config(RunConfig, folder / "config.yaml")
    found = from_pretrained(exported)
    told = json.loads((exported / "config.json").read_text())
    expected = config.generator.build(told["text_dim"])
    load_generator(folder, expected)
    torch.manual_seed(0)
    pooled, points = torch.randn(2, told["text_dim"]), torch.rand(2, 50, 3) - 0.5
    text = TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(found(text).sdf(points), expected.eval()(text).sdf(points))
    assert told["sharpness"] == 200 and told["text"]["encoder"] == config.prior.path
    weights = (exported / "model.safetensors").read_bytes()
    (exported / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(ValueError, match="holds no generator that can be read .*: export it anew"):
        from_pretrained(exported)


@pytest.mark.parametrize("preset", preset_paths(), ids=lambda path: path.stem)
def test_presets_are_valid_and_write_where_their_name_says(preset):
    config = load_config(RunConfig, preset, ["corpus=shapes16", "prior=p"])
    assert config.output == f"outputs/{preset.stem}"


@pytest.mark.parametrize("preset", ["hyper-ingp-sd21", "hyper-ingp-mvdream"])
@pytest.mark.parametrize("method", METHODS)
def test_presets_of_published_priors_have_each_methods_published_schedule(preset, method):
    told = ["corpus=shapes16", f"guidance.method={method}"]
    config = load_config(RunConfig, ROOT / f"configs/{preset}.yaml", told)
    assert config.guidance == published(method)


def test_a_prompt_is_a_run_of_its_own(run, prior, tmp_path):
    overrides = [
        o for o in small(prior, tmp_path / "x", 'prompt=a "blue": [cone]') if not o.startswith("output=")
    ]
    shown = run(*overrides, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "output: outputs/quickstart-" in shown.stdout and "corpus: 1 prompts" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "holds no run"),
        (["{run}", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["{run}", "--prompts", "t3bench"], "corpus must be one of"),
        (["{run}", "corpus=df415"], "corpus=df415 would say that the run learned something else: use"),
    ],
)
def test_evaluations_that_cannot_be(run, tmp_path, arguments, sentence):
    (tmp_path / "config.yaml").write_text("corpus: shapes16\noutput: x\nprior: checkpoints/shapes-prior\n")
    failed = run("evaluate.py", *(a.format(run=tmp_path) for a in arguments))
    assert failed.returncode == 2 and sentence in failed.stderr and "Traceback" not in failed.stderr


# ---- corpora and their text -------------------------------------------------------------------

PROMPTS = [
    {"prompt": "a red cube", "id": "first"},
    {"prompt": "a very blue cone on top of a big green ball", "id": "second", "split": "test"},
    {"prompt": "a very blue cone on top of a big green ball now", "id": "third"},
    {"prompt": "a torus", "id": "fourth", "split": "test"},
]


def test_a_corpus_of_ones_own_from_shards_to_scores(run, prior, tmp_path):
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
    quick = (clip, "evaluation.views=2", "evaluation.turntable_frames=0", "evaluation.grid=16")
    judged = run("evaluate.py", str(folder), "--split", "heldout", *quick)
    assert judged.returncode == 0, judged.stderr
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    near = [(row["text"], row["near_train"]) for row in results["prompts"]]
    assert near == [(PROMPTS[1]["prompt"], PROMPTS[2]["prompt"]), ("a torus", None)]
    assert list(results["by_split"]) == ["heldout", "heldout, unlike any trained"]
    assert results["chance"]["gallery"] == 4
    asked = run("evaluate.py", str(folder), "--limit", "1", "evaluation.gallery=asked", *quick)
    assert asked.returncode == 0, asked.stderr
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    assert [row["id"] for row in results["prompts"]] == ["first"] and results["chance"]["gallery"] == 1
    for arguments, sentence in (
        (("--split", "dev"), "has no list named dev"),
        (("--split", "val"), "has no prompt in 'val'"),
        (("--limit", "0"), "--limit must be at least 1, got 0"),
        (("--prompt", "a ball", "--split", "train"), "--split train is of a corpus: leave it out"),
    ):
        failed = run("evaluate.py", str(folder), *arguments, clip)
        assert failed.returncode == 2 and sentence in failed.stderr and failed.stderr.count("\n") == 1


def test_text_that_does_not_fit_is_refused(run, prior, tmp_path):
    from tests.tiny_sd import make_tiny_sd

    other, text = make_tiny_sd(tmp_path / "other", seed=1), tmp_path / "text"
    told = run("corpora", "encode", "shapes16", "--encoder", str(other), "--output", str(text), "--pooled")
    assert told.returncode == 0, told.stderr
    tokens = ("generator.text=tokens",)
    for chosen, sentence, *more in (
        (prior, f"{text} was encoded with {other}, not with the prior's {prior}; encode the corpus again"),
        (str(other), "text.shards hold pooled vectors only, but this generator reads tokens", *tokens),
        (prior, "'nowhere' cannot be loaded", "text.shards=[]", "text.encoder=nowhere"),
    ):
        failed = run(*small(chosen, tmp_path / "run", f"text.shards=[{text}]", *more))
        assert failed.returncode == 2 and sentence in failed.stderr, failed.stderr
        assert failed.stderr.strip().count("\n") == 0 and not (tmp_path / "run").exists()
    pooled = run(*small(str(other), tmp_path / "run", f"text.shards=[{text}]", "trainer.steps=2"))
    assert pooled.returncode == 0, pooled.stderr


def test_prompts_are_taken_evenly():
    assert evaluate.spaced(range(10), None) == list(range(10))
    assert evaluate.spaced(range(10), 4) == [0, 2, 5, 7]
    assert evaluate.spaced([3, 5], 7) == [3, 5]


def test_nearness_is_told_of_held_out_prompts_only():
    def row(text: str, split: str) -> PromptRow:
        return PromptRow(id=text, text=text, split=split, clip_similarity=0.5, recall_at_1=1.0)

    corpus = prompt_list(["a red cube on the table", "a blue cone"], "mine")
    rows = [row("a red cube on the table", "train"), row("A red cube on the table.", "heldout")]
    rows += [row("a blue cone", "heldout"), row("a torus", "heldout")]
    found = [(one.split, one.near_train) for one in evaluate.told_nearness(rows, corpus)]
    near = "a red cube on the table"
    # What is asked for by --prompts may be a training prompt after all.
    assert found == [("train", None), ("heldout", near), ("train", None), ("heldout", None)]


def test_two_processes_encode_together_and_stop_together(prior, tmp_path):
    """A real launch: the same bytes as one process writes; and where one meets an error, one sentence."""
    text = [tmp_path / name for name in ("one", "two")]
    command = ["-m", "corpora", "encode", "shapes16", "--encoder", prior, "--prompts-per-shard", "3"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    given = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 240}
    alone = subprocess.run([sys.executable, *command, "--device", "cpu", "--output", str(text[0])], **given)
    both = subprocess.run([sys.executable, *launch, "--device", "cpu", "--output", str(text[1])], **given)
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr[-2000:]
    names = sorted(str(path.relative_to(text[0])) for path in text[0].rglob("*") if path.is_file())
    assert len(names) == 17 and all(filecmp.cmp(text[0] / name, text[1] / name, False) for name in names)
    other = [*launch, "--device", "cpu", "--output", str(text[1]), "--dtype", "float16"]
    failed = subprocess.run([sys.executable, *other], **given)
    told = [line for line in failed.stderr.splitlines() if line.startswith("corpora: error: ")]
    assert failed.returncode != 0 and len(told) == 1 and "was started with dtype bfloat16" in told[0]
    assert "Traceback" not in failed.stderr.partition("torch/distributed")[0]
