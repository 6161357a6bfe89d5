"""The folders of a run's evaluations: one for each selection of prompts, replaced whole, with provenance."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from amortized.commands.compose import load_run_config, output_of_prompt
from amortized.commands.evaluation import Selection
from amortized.names import slug
from amortized.pages import VIEWER_FILES
from amortized.types import Prompt
from tests.rooms import ROOT

QUICK = (
    f"evaluation.clip={ROOT / 'checkpoints' / 'shapes-clip'}",
    "evaluation.views=2",
    "evaluation.turntable_frames=2",
    "evaluation.objects=2",
    "evaluation.turntable_size=16",
    "evaluation.image_size=16",
    "evaluation.grid=8",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def run_folder(trained, tmp_path_factory) -> Path:
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("folders") / "run"))


def test_other_selections_have_folders_of_their_own():
    run, every = Path("run"), ["evaluation"]
    assert Selection().folder(run) == run / "evaluation"
    for options in (
        {"prompt": "a red cube"},
        {"prompt": "A red cube"},
        {"prompt": "split heldout"},
        {"prompts": "mine.txt"},
        {"prompts": "other/mine.txt"},
        {"split": "heldout"},
        {"split": "train"},
        {"limit": 5},
        {"limit": 6},
        {"checkpoint": "best"},
        {"checkpoint": "step_000100", "limit": 5},
        {"prompt": "../../etc"},
        {"prompt": "x" * 4000},
    ):
        folder = Selection(**options).folder(run)
        assert folder.parent == run / "evaluations" and len(folder.name) <= 40
        every.append(folder.name)
    assert len(set(every)) == len(every) - 1  # `--split heldout` and a prompt of these words may share one
    assert every[1] == slug("a red cube")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"limit": 0}, "--limit must be at least 1, got 0"),
        ({"prompt": "a", "prompts": "b"}, "--prompt and --prompts exclude each other"),
        ({"prompt": "a", "split": "train"}, "--split train selects from the corpus"),
    ],
)
def test_options_that_exclude_each_other(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Selection(**options)


def test_a_prompt_does_not_replace_the_report_of_the_run(run, run_folder):
    whole = run("evaluate.py", str(run_folder), *QUICK)
    assert whole.returncode == 0 and f"report: {run_folder}/evaluation/index.html" in whole.stdout, (
        whole.stderr
    )
    report = contents(run_folder / "evaluation")
    index = json.loads(report["index.json"])
    listed = {entry[kind] for entry in index for kind in ("strip", "truth_strip", "turntable", "object")}
    listed |= {
        path.replace("objects/", "objects/viewer/") + ".js"
        for path in listed - {None}
        if path.endswith(".glb")
    }
    listed = {*listed, *(f"objects/{name}" for name in VIEWER_FILES)} - {None}
    assert listed | {"results.json", "results.csv", "config.yaml", "index.html", "index.json"} == set(report)
    assert [entry["strip"] for entry in index] == [f"strips/{slug(entry['prompt'])}.png" for entry in index]
    one = run("evaluate.py", str(run_folder), "--prompt", "a red cube", *QUICK)
    assert one.returncode == 0, one.stderr
    folder = run_folder / "evaluations" / slug("a red cube")
    assert f"report: {folder}/index.html" in one.stdout and "1 prompt," in one.stdout
    assert "a red cube · run · asd" in (folder / "index.html").read_text()
    assert contents(run_folder / "evaluation") == report


def test_an_evaluation_says_where_its_results_come_from(run, run_folder):
    shutil.rmtree(run_folder / "evaluation", ignore_errors=True)
    done = run("evaluate.py", str(run_folder), "--limit", "1", *QUICK)
    assert done.returncode == 0, done.stderr
    folder = next((run_folder / "evaluations").glob("limit-1-*"))
    made = json.loads((folder / "results.json").read_text())["provenance"]
    config = run_folder / "config.yaml"
    assert made["config_sha256"] == hashlib.sha256(config.read_bytes()).hexdigest()
    assert (made["method"], made["step"], made["steps"], made["seed"]) == ("asd", 4, 4, 0)
    assert made["checkpoint"] == "step_000004" and made["device"] == "cpu" and made["training_s"] > 0
    assert load_run_config(folder / "config.yaml").evaluation.grid == 8
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == 2 and ("commit" in made) == (ROOT / ".git").exists()
    assert "method: asd" in config.read_text() and "(asd, step_000004)" in done.stdout


@pytest.mark.parametrize(
    "log", [None, b"[1]\n", b"\x00", b'{"step": 1}\n'], ids=["none", "list", "bytes", "empty"]
)
def test_a_log_of_another_shape_is_left_out_with_a_note(run, run_folder, tmp_path, log):
    copy = Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*")))
    (copy / "log.jsonl").unlink()
    if log is not None:
        (copy / "log.jsonl").write_bytes(log)
    done = run("evaluate.py", str(copy), "--limit", "1", "--output", str(tmp_path / "out"), *QUICK)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/index.html").read_text()
    assert "<svg" not in page and "Left out: " in page


def test_output_is_never_a_folder_of_others(run, run_folder, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    for output, sentence in ((str(tmp_path), "has files that evaluate did not write"), ("", "empty")):
        refused = run("evaluate.py", str(run_folder), "--limit", "1", "--output", output, *QUICK)
        assert refused.returncode == 2 and sentence in refused.stderr and refused.stderr.count("\n") == 1
    assert contents(tmp_path) == {"index.html": b"mine"}


def test_a_failed_evaluation_leaves_the_report(run, run_folder, monkeypatch):
    assert run("evaluate.py", str(run_folder), "--limit", "2", *QUICK).returncode == 0
    folder = next((run_folder / "evaluations").glob("limit-2-*"))
    before = contents(folder)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amortized.evaluation.evaluator.save_video", full)
    failed = run("evaluate.py", str(run_folder), "--limit", "2", *QUICK)
    assert failed.returncode == 2 and f"cannot write {folder}: No space left on device" in failed.stderr
    assert "Traceback" not in failed.stderr and contents(folder) == before
    assert not list((run_folder / "evaluations").glob(".*"))


def test_a_run_of_one_prompt_is_named_by_it(run, prior, tmp_path):
    shown = run("train.py", "configs/quickstart.yaml", "--dry-run", f"prior={prior}", "prompt=a red cube",
                "trainer.prompts_per_process=1", "trainer.render_size=16")  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert (
        f"output: outputs/quickstart-{slug('a red cube')}\n" in shown.stdout and "method: asd" in shown.stdout
    )
    # A run of an earlier version is resumed under its name.
    config = load_run_config(ROOT / "configs/quickstart.yaml", [f"output={tmp_path}/one"])
    prompt = Prompt(id="0123456789abcdef", text="a red cube")
    (tmp_path / "one-0123456789abcdef").mkdir()
    assert output_of_prompt(config, prompt) == f"{tmp_path}/one-0123456789abcdef"
