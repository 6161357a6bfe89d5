"""`amortized compare` on evaluated runs, and the commands that a run's page prints."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil

import pytest

from tests.commands.runs import small

FAST = ("evaluation.views=2", "evaluation.turntable_frames=0", "evaluation.objects=0", "evaluation.grid=16")


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A run of four prompts, and an evaluation of its earlier checkpoint of three of them."""
    import evaluate

    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, folder)
    for number, checkpoint, output in ((4, "newest", "evaluation"), (3, "step_000002", "evaluations/early")):
        options = ["--limit", str(number), "--checkpoint", checkpoint, "--output", str(folder / output)]
        assert evaluate.main([str(folder), *options, *FAST]) == 0
    return folder


def test_two_checkpoints_of_a_run_are_compared(run, evaluated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second comparison replaces the first
        done = run("amortized", "compare", str(evaluated), str(evaluated / "evaluations/early"))
        assert done.returncode == 0, done.stderr
    assert "run (step_000002) minus run (step_000004):" in done.stdout
    (page,) = (tmp_path / "outputs/comparisons").glob("*/index.html")
    assert f"comparison: {page.relative_to(tmp_path)}" in done.stdout
    data = json.loads((page.parent / "comparison.json").read_text())
    results = [evaluated / "evaluation/results.json", evaluated / "evaluations/early/results.json"]
    first, second = ({row["text"] for row in json.loads(p.read_text())["prompts"]} for p in results)
    assert (data["prompts"], data["in_all_runs"]) == (len(first | second), len(first & second))
    text = page.read_text(encoding="utf-8")
    assert text.count("<polyline") > 4 and "Without" not in text  # the curves of the run's log
    assert all((page.parent / name).is_file() for name in re.findall(r'<img src="([^"]+)"', text))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["RUN"], "takes 2 to 12 runs, got 1"),
        (["RUN", "RUN"], "is named twice"),
        (["RUN", "nothing"], "nothing is not a folder"),
        (
            ["RUN", "RUN/evaluations/early", "--output", "RUN/evaluation"],
            "has files that compare did not write",
        ),
        (["RUN", "RUN/evaluations/early", "--output", "a-file"], "a-file is a file"),
        ([], "required: RUN"),
    ],
)
def test_mistakes_are_one_sentence(run, evaluated, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("mine")
    before = sorted(path.name for path in (evaluated / "evaluation").iterdir())
    done = run("amortized", "compare", *(word.replace("RUN", str(evaluated)) for word in words))
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.name for path in (evaluated / "evaluation").iterdir()) == before


def test_an_evaluation_does_not_replace_a_comparison(run, evaluated, tmp_path):
    output = ["--output", str(tmp_path / "page")]
    assert (
        run("amortized", "compare", str(evaluated), str(evaluated / "evaluations/early"), *output).returncode
        == 0
    )
    done = run("amortized", "evaluate", str(evaluated), "--limit", "2", *output, *FAST)
    assert done.returncode == 2 and "has files that evaluate did not write" in done.stderr


@pytest.mark.parametrize("prompt", [[], ["prompt=a red cube"]])
def test_the_commands_on_a_runs_page_work(run, prior, tmp_path, monkeypatch, prompt):
    """Resume and evaluate continue with the run itself, in a folder with a space in its name."""
    script, *arguments = small(prior, tmp_path / "my run", *prompt)
    assert run(script, *arguments).returncode == 0
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]

    def printed() -> list[str]:
        page = (folder / "index.html").read_text(encoding="utf-8")
        (command,) = re.findall(r'<pre class="command"[^>]*>(.*?)</pre>', page)
        name, *words = shlex.split(html.unescape(command))
        assert name == "amortized"
        return words

    assert printed()[0] == "evaluate"
    done = run("amortized", *printed(), "--limit", "1", *FAST)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("amortized.training.trainer.catch_signals", interrupted_at_once)
    assert (
        run(
            "amortized",
            "train",
            str(folder / "config.yaml"),
            f"output={folder}",
            "trainer.steps=6",
            "--resume",
            "changed",
        ).returncode
        == 75
    )
    monkeypatch.undo()
    words = printed()
    assert words[0] == "train"
    done = run("amortized", *words, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "trained at step 6" in done.stdout and printed()[0] == "evaluate"
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


class interrupted_at_once:
    """Stands in for the context of the signals: one has arrived."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    def __enter__(self):
        return lambda: True

    def __exit__(self, *error) -> None:
        pass
