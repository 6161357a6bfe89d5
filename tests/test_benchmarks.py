"""The comparison of methods: equal calls, nothing done twice, and a table that averages right."""

import json
from pathlib import Path

import pytest

from amortized.guidance import Guidance, GuidanceConfig
from benchmarks import methods


def rows(*recalls: float) -> list[dict]:
    return [dict.fromkeys(methods.COLUMNS, 0.5) | {"recall_at_1": recall} for recall in recalls]


def test_the_table_averages_seeds_before_prompts():
    found = {"asd": [rows(1.0, 0.0), rows(0.5, 0.5)], "sds": [rows(1.0, 1.0)]}
    head, rule, asd, sds = methods.table(found).splitlines()
    assert head.count("|") == rule.count("|") == asd.count("|") == sds.count("|")
    # Prompts average 0.75 and 0.25 over the seeds; a mean of two such prompts can be no further out.
    assert asd.startswith("| asd | 0.500 [0.250, 0.750] | 0.500 [0.500, 0.500] |")
    assert asd.endswith("| 0.500, 0.500 |") and sds.endswith("| 1.000 |")


def test_every_method_gets_the_same_denoiser_calls_and_is_run_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = []

    def pretend(command: list[str], check: bool) -> None:
        commands.append(command[1:])
        if "evaluate.py" in command:
            folder = Path(command[-1]) / "evaluation"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps({"prompts": rows(0.25)}))

    monkeypatch.setattr(methods.subprocess, "run", pretend)
    for method, steps in [("asd", 400), ("sds", 600), ("csd", 600), ("asd-no-shift", 400)]:
        for _ in range(2):
            found = methods.run(Path("a/quick.yaml"), method, 3, 1200, ["losses.eikonal=1"])
            assert found == rows(0.25)
        train, evaluation = commands
        assert f"trainer.steps={steps}" in train and "seed=3" in train and "losses.eikonal=1" in train
        assert evaluation == ["evaluate.py", f"outputs/methods/quick-{method}-3"]
        commands.clear()
    methods.run(Path("a/quick.yaml"), "asd", 4, 1200, [], processes=2)
    for command, script in zip(commands, ("train.py", "evaluate.py"), strict=True):
        assert command[:4] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        assert command[4] == script


def test_processes_share_the_prompts_evenly(monkeypatch, capsys):
    asked = []

    def pretend(*arguments) -> list[dict]:
        asked.append(arguments)
        return rows(0.5)

    monkeypatch.setattr(methods, "run", pretend)
    monkeypatch.setattr(
        methods.sys, "argv", ["methods", "--methods", "csd", "--seeds", "7", "--processes", "2"]
    )
    methods.main()
    assert asked == [(Path("configs/quickstart.yaml"), "csd", 7, 1800, ["trainer.prompts_per_process=8"], 2)]
    monkeypatch.setattr(methods.sys, "argv", ["methods", "--processes", "3"])
    with pytest.raises(SystemExit):
        methods.main()
    assert "3 processes cannot share 16 prompts evenly" in capsys.readouterr().err


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_calls_of_a_step_are_what_guidance_asks(name: str):
    (method, *_), calls = methods.METHODS[name]
    config = GuidanceConfig(method=method.removeprefix("guidance.method="))
    assert Guidance(None, config).branches_per_image(num_negatives=0) == calls
