"""`amortized submit`: what it checks, prints and starts."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from amortized.runs import read_runs
from tests.commands.runs import small
from tests.launch.stubs import StubFolder
from tests.rooms import ROOT

QUICK = ["configs/quickstart.yaml", "--check", "settings"]


def submitted(run, *arguments: str):
    return run("amortized", "submit", *arguments)


def test_a_dry_run_prints_the_launch_file_and_the_command_and_writes_nothing(run, tmp_path):
    folder = tmp_path / "mine"
    prompt = 'prompt=it\'s $(a)\nred "cube"'
    shown = submitted(run, *QUICK, prompt, f"output={folder}", "--to", "local", "--dry-run")
    assert (
        shown.returncode == 0
        and shlex.join(["set", "--", QUICK[0], prompt, f"output={folder}"]) in shown.stdout
    )
    assert shown.stdout.splitlines()[-1] == shlex.join(["bash", f"{folder}/launch.sh"])
    assert not folder.exists()


def test_the_folder_of_a_prompt_is_that_of_a_training(run):
    shown = submitted(run, *QUICK, "prompt=a red cube", "--to", "local", "--dry-run")
    assert "'prompt=a red cube' output=outputs/quickstart-a-red-cube-" in shown.stdout


def test_an_absolute_output_elsewhere_has_its_record_here(run):
    shown = submitted(run, *QUICK, "output=/runs/mine", "--to", "skypilot", "--dry-run")
    assert "output=/runs/mine\n" in shown.stdout and f"{ROOT}/outputs/mine/launch.yaml" in shown.stdout


MISTAKES = {
    "key": (["trainer.stps=3", "--to", "local"], "did you mean trainer.steps"),
    "preset": (["--to", "nowhere"], "invalid choice"),
    "value": (["trainer.steps=-3", "--to", "local"], "trainer.steps must be at least 1"),
    "absent": (["--to", "ray"], "there is no command ray here"),
    "template": (["--to", "slurm", "--template", "none.sbatch"], "cannot read none.sbatch"),
    "placeholder": (["--to", "kubernetes"], "`image` is a placeholder"),
    "processes": (["--to", "slurm", "--processes", "2"], "takes the number from its template"),
    "option": (["--to", "local", "--option=--nodes=2"], "--to local has none"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_sentence(run, monkeypatch, kind):
    monkeypatch.setenv("PATH", "/bin")
    arguments, sentence = MISTAKES[kind]
    failed = submitted(run, *QUICK, *arguments)
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and sentence in failed.stderr


def test_the_dry_run_of_the_training_decides(run, tmp_path, monkeypatch):
    """A stand-in for train.py fails for its arguments, which are those of the run."""
    (tmp_path / "train.py").write_text(
        "import sys; print('a note', file=sys.stderr); sys.exit(f'train.py: error: no file {sys.argv[2:]}')"
    )
    monkeypatch.setattr("amortized.commands.submit.PROJECT", tmp_path)
    settings = ["corpus=prompts-elsewhere.txt", f"output={tmp_path}/a"]
    for to, remedy in (("local", ""), ("skypilot", "; if these files are only where the job runs")):
        arguments = [*settings, "output=/runs/a"] if to == "skypilot" else settings
        failed = submitted(run, QUICK[0], *arguments, "--to", to, "--dry-run")
        assert failed.returncode == 2 and failed.stderr.count("\n") == 1
        assert f"the dry run failed: no file {[*arguments, '--dry-run']}{remedy}" in failed.stderr
    assert not (tmp_path / "a").exists()


def test_following_shows_status_and_log_until_the_end(run, tmp_path, monkeypatch):
    """Of a job that waits, trains to its end, and leaves the queue."""
    stubs = StubFolder(tmp_path)
    stubs.stub("sbatch", "echo 7")
    stubs.stub("squeue", f"cat '{tmp_path}/state' 2>/dev/null || true")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    folder, moments = tmp_path / "run", []
    (tmp_path / "state").write_text("7 PENDING")

    def sleep(seconds: float) -> None:
        moments.append(seconds)
        if len(moments) == 1:
            (tmp_path / "state").write_text("7 RUNNING")
            (folder / "launch.log").write_text("first\n")
        elif len(moments) == 2:
            with (folder / "launch.log").open("a") as file:
                file.write("second\n")
            (folder / "config.yaml").write_text("trainer: {steps: 4}\n")
            event = {"time": "", "step": 4, "note": "finished", "status": "finished"}
            (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
            (tmp_path / "state").unlink()

    monkeypatch.setattr("amortized.commands.following.time", SimpleNamespace(sleep=sleep))
    done = submitted(run, *QUICK, f"output={folder}", "--to", "slurm", "--follow")
    assert done.returncode == 0 and done.stdout.endswith("first\nsecond\n")
    words = [line.split(" ")[0].rstrip(";") for line in done.stderr.splitlines()[1:]]
    assert words == ["waiting", "running", "done"]


@pytest.mark.slow
def test_a_local_run_that_is_killed_resumes_with_the_same_command(run, prior, tmp_path):
    """Launcher and training are killed after a checkpoint; the second start trains to the last step."""
    folder = tmp_path / "run"
    _, preset, *settings = small(prior, folder, "trainer.steps=60", "checkpointing.every=5", "device=cpu")
    arguments = [preset, *settings, "--to", "local", "--processes", "1"]
    assert submitted(run, *arguments).returncode == 0
    while not list(folder.glob("checkpoints/step_*")):
        time.sleep(0.1)
    refused = submitted(run, *arguments)
    assert refused.returncode == 2 and "trains" in refused.stderr
    training = int((folder / ".lock").read_text().split()[1])
    job = int(json.loads((folder / "submission.json").read_text())["job"])
    for process in (job, training):
        os.kill(process, signal.SIGKILL)
    os.waitpid(job, 0)
    while read_runs(folder)[0].status == "running":
        time.sleep(0.1)
    (lost,) = read_runs(folder)
    assert lost.status == "lost" and 5 <= (lost.facts.step or 0) < 60
    done = submitted(run, *arguments, "--follow")
    assert done.returncode == 0 and "trained at step 60" in done.stdout
    (ended,) = read_runs(folder)
    assert ended.status == "done" and ended.facts.step == 60
    starts = [json.loads(line)["step"] for line in Path(folder, "events.jsonl").read_text().splitlines()]
    assert sorted(set(starts))[1] >= 1 and any(5 <= step < 60 for step in starts)
