"""Commands called as their console scripts call them, and the tiny random prior that their runs train on."""

from __future__ import annotations

from pathlib import Path

import pytest

import evaluate
import train
from amortized.commands.main import main as amortized_main
from corpora.__main__ import main as corpora_main
from tests.commands.runs import Finished, small
from tests.rooms import ROOT
from tests.tiny_sd import make_tiny_sd

MAINS = {
    "train.py": train.main,
    "evaluate.py": evaluate.main,
    "corpora": corpora_main,
    "amortized": amortized_main,
}


@pytest.fixture
def run(capfd, monkeypatch):
    """Calls a command's main as its console script would; a process each would mostly import torch."""
    monkeypatch.chdir(ROOT)

    def call(script: str, *arguments: str) -> Finished:
        capfd.readouterr()
        try:
            status = MAINS[script](list(arguments))
        except SystemExit as exit:
            status = exit.code
        captured = capfd.readouterr()
        return Finished(int(status or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> str:
    return str(make_tiny_sd(tmp_path_factory.mktemp("prior"), prediction_type="v_prediction"))


@pytest.fixture(scope="session")
def trained(prior, tmp_path_factory) -> Path:
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    script, *arguments = small(prior, folder)
    assert MAINS[script](arguments) == 0
    return folder


@pytest.fixture(scope="session")
def exported(trained) -> Path:
    """The export of that run."""
    folder = trained.parent / "exported"
    assert amortized_main(["export", str(trained), str(folder)]) == 0
    return folder
