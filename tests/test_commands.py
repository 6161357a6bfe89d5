"""The commands as a user types them, on a tiny random prior."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import evaluate
import train
from amortized.cli import preset_paths
from amortized.commands.compose import RunConfig, build_untrained
from amortized.commands.evaluation import choose_prompts, mark_near_duplicates
from amortized.commands.main import COMMANDS
from amortized.commands.main import main as amortized_main
from amortized.config import load_config
from amortized.evaluation import PromptRow
from amortized.generation import TextTo3D
from amortized.guidance import METHODS, published
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
                "amortized": amortized_main,
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


def test_the_command_lists_its_subcommands_quickly():
    """Without importing PyTorch; a misspelled preset is reported without it too."""
    command = [sys.executable, "-X", "importtime", "-m", "amortized.commands.main"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60}
    shown = subprocess.run([*command, "--help"], **options)
    assert shown.returncode == 0 and all(f"    {one.name}" in shown.stdout for one in COMMANDS)
    failed = subprocess.run([*command, "train", "configs/quikstart.yaml"], **options)
    assert failed.returncode == 2 and "did you mean configs/quickstart.yaml?" in failed.stderr
    for done in (shown, failed):
        assert not [line for line in done.stderr.splitlines() if line.endswith((" torch", " numpy"))]


@pytest.mark.parametrize("command", [one.name for one in COMMANDS])
def test_every_subcommand_has_help_that_starts_with_an_example(run, command):
    shown = run("amortized", command, "--help")
    assert shown.returncode == 0
    description = shown.stdout.partition("\n\n")[2].partition("options:")[0]
    assert re.search(r"^  (amortized|python|torchrun) \S+", description, re.MULTILINE), description


def test_unknown_subcommands_and_the_version(run):
    assert run("amortized", "trian").returncode == 2
    assert re.fullmatch(r"amortized3d \d+\.\d+\.\d+\n", run("amortized", "--version").stdout)


def test_completion_offers_commands_and_options():
    environment = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_TYPE": "9"}
    for line, expected in (("amortized ex", "export"), ("amortized generate --tex", "--text-encoder")):
        asked = {**environment, "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
        code = "import os; os.dup2(1, 8); from amortized.commands.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=asked, capture_output=True, text=True
        )
        assert expected in done.stdout, done.stderr


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
        "denoiser: 6 images per step",
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
    exported = run("amortized", "export", str(folder), str(tmp_path / "exported"))
    assert exported.returncode == 0 and "step_000004" in exported.stdout, exported.stderr
    generated = run("amortized", "generate", str(folder), "a red cube", "<b>=1", *quick_pictures(tmp_path))
    assert generated.returncode == 0 and "4 objects in" in generated.stdout, generated.stderr
    index = json.loads((tmp_path / "pictures/index.json").read_text())
    assert [(entry["prompt"], entry["seed"]) for entry in index][:3] == [
        ("a red cube", 0),
        ("a red cube", 1),
        ("<b>=1", 0),
    ]
    assert all(
        (tmp_path / "pictures" / entry[kind]).stat().st_size > 100
        for entry in index
        for kind in ("strip", "turntable")
    )
    check_exported(folder, tmp_path / "exported", tmp_path, prior)
    assert run("amortized", "export", str(folder), str(tmp_path / "exported")).returncode == 2
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


def quick_pictures(tmp_path: Path) -> list[str]:
    return [
        "--output",
        str(tmp_path / "pictures"),
        "--seeds",
        "2",
        "--size",
        "16",
        "--views",
        "2",
        "--frames",
        "2",
    ]


def test_a_signal_ends_with_a_status_that_schedulers_start_again(run, prior, tmp_path):
    """A real process: it saves and exits with 75; the same command resumes to the end."""
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
    assert going.returncode == 75 and "run the same command to resume" in told
    again = run(*arguments)
    assert again.returncode == 0 and "trained at step 60" in again.stdout, again.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 61))


USE_ELSEWHERE = """
import sys, torch
from amortized.generation import TextTo3D
folder, encoder = sys.argv[1:3]
model = TextTo3D.from_pretrained(folder, text_encoder=encoder, device="cpu")
scene = model.scenes(["a red cube", "a blue cone"])
torch.save(model.images(scene, model.orbit(2, 3), 16).rgb, sys.argv[3])
"""


def check_exported(run_folder: Path, exported: Path, tmp_path: Path, prior: str) -> None:
    """A fresh interpreter in another folder makes the run's images, bit for bit, from a copy."""
    data = json.loads((exported / "config.json").read_text())
    assert data["scenes"]["sharpness"] == pytest.approx(200) and data["text_encoder"]["path"] == prior
    card = (exported / "README.md").read_text()
    assert "shapes16" in card and "Apache-2.0" in card and "| steps | 4 |" in card
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(exported, elsewhere / "model")
    command = [sys.executable, "-c", USE_ELSEWHERE, "model", prior, "images.pt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=elsewhere, env=environment, check=True, timeout=120)
    found = torch.load(elsewhere / "images.pt", weights_only=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = TextTo3D.from_run(run_folder, device="cpu")
    scene = model.scenes(["a red cube", "a blue cone"])
    expected = model.images(scene, model.orbit(2, 3), 16).rgb
    torch.set_num_threads(threads)
    assert found.shape == (2, 3, 16, 16, 3) and torch.equal(found, expected)
    with pytest.raises(ValueError, match="needs the text encoder .* not on this machine: download"):
        TextTo3D.from_pretrained(elsewhere / "model", text_encoder=str(tmp_path / "nowhere"))
    other = str(make_tiny_sd(tmp_path / "other_encoder", seed=3))
    with pytest.raises(ValueError, match="was trained with the text encoder .* but .* is another one"):
        TextTo3D.from_pretrained(elsewhere / "model", text_encoder=other)
    weights = (exported / "model.safetensors").read_bytes()
    (exported / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(ValueError, match="cannot load .*: export it again from its run"):
        TextTo3D.from_pretrained(exported)


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
    assert "output: outputs/quickstart-" in shown.stdout and "corpus: 1 training prompts" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "holds no run"),
        (["{run}", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["{run}", "--prompts", "t3bench"], "corpus must be one of"),
        (["{run}", "corpus=df415"], "corpus=df415 would change what the run trained: to evaluate other"),
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
        (("--prompt", "a ball", "--split", "train"), "--split train selects from the corpus: omit it"),
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
        (str(other), "text.shards have pooled vectors only, but this generator needs tokens", *tokens),
        (prior, "'nowhere' cannot be loaded", "text.shards=[]", "text.encoder=nowhere"),
    ):
        failed = run(*small(chosen, tmp_path / "run", f"text.shards=[{text}]", *more))
        assert failed.returncode == 2 and sentence in failed.stderr, failed.stderr
        assert failed.stderr.strip().count("\n") == 0 and not (tmp_path / "run").exists()
    pooled = run(*small(str(other), tmp_path / "run", f"text.shards=[{text}]", "trainer.steps=2"))
    assert pooled.returncode == 0, pooled.stderr


def test_initial_weights_depend_on_the_seed_alone():
    """Not on what was drawn before, and nothing drawn later depends on them."""
    config = load_config(RunConfig, ROOT / "configs/quickstart.yaml", ["generator.grid.engine=torch"])
    torch.manual_seed(1)
    first = build_untrained(config, 8, torch.device("cpu")).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    torch.manual_seed(2)
    again = build_untrained(config, 8, torch.device("cpu")).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = build_untrained(replace(config, seed=config.seed + 1), 8, torch.device("cpu")).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_prompts_are_taken_evenly():
    corpus = prompt_list([f"prompt {i}" for i in range(10)], "mine")

    def chosen(limit: int | None) -> list[int]:
        return [int(prompt.text.split()[1]) for prompt in choose_prompts(corpus, "all", None, None, limit)]

    assert chosen(None) == chosen(20) == list(range(10))
    assert chosen(4) == [0, 2, 5, 7]


def test_nearness_is_told_of_held_out_prompts_only():
    def row(text: str, split: str) -> PromptRow:
        return PromptRow(id=text, text=text, split=split, clip_similarity=0.5, recall_at_1=1.0)

    corpus = prompt_list(["a red cube on the table", "a blue cone"], "mine")
    rows = [row("a red cube on the table", "train"), row("A red cube on the table.", "heldout")]
    rows += [row("a blue cone", "heldout"), row("a torus", "heldout")]
    found = [(one.split, one.near_train) for one in mark_near_duplicates(rows, corpus)]
    near = "a red cube on the table"
    # A prompt of --prompts may be a training prompt.
    assert found == [("train", None), ("heldout", near), ("train", None), ("heldout", None)]


def test_two_processes_encode_together_and_stop_together(prior, tmp_path):
    """A real launch: the same bytes as one process writes; an error on one is one sentence."""
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
