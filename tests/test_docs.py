"""Every command in README and docs exists as printed: its script, its options, its presets, its settings."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import evaluate
import train
from amortized.cli import check_readable
from amortized.commands.compose import RunConfig, load_run_config
from amortized.commands.main import COMMANDS
from amortized.config import load_config
from tests.rooms import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {command.name: command for command in COMMANDS}


def commands(page: Path) -> Iterator[str]:
    """The shell lines of a page's fenced blocks, continuation lines joined, comments dropped."""
    for block in re.findall(r"(?ms)^```(?:sh|bash)?\n(.*?)^```$", page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(python|torchrun|amortized|make) ", line):
                yield line.partition("  #")[0].strip()


def test_the_pages_have_commands() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 20


def parsed(module, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    subcommands = any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)
    return (parser.parse_args if subcommands else parser.parse_intermixed_args)(words)


def check_training(args: argparse.Namespace) -> None:
    check_readable(ROOT / args.config, args.overrides)
    if "generator.name=film" in args.overrides:  # the worked example, which test_extending.py runs
        return
    load_run_config(ROOT / args.config, ["corpus=shapes16", "prior=p", *args.overrides])


def check(command: str) -> None:
    """Raise if a command does not parse. Launcher prefixes and assignments are dropped."""
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"(?m)^{words[1]}:", (ROOT / "Makefile").read_text()), command
        return
    if words[0] == "torchrun":
        words = ["python", *words[next(i for i, w in enumerate(words) if w == "-m" or w.endswith(".py")) :]]
    if words[0] == "amortized":
        if words[1].startswith("-"):
            return
        name, rest = words[1], words[2:]
    elif words[1].endswith("train.py"):
        name, rest = "train", words[2:]
    elif words[1].endswith("evaluate.py"):
        name, rest = "evaluate", words[2:]
    else:
        assert words[1] == "-m", command
        module = ROOT / words[2].replace(".", "/")
        assert (
            module.with_suffix(".py").exists() or (module / "__main__.py").exists() or (words[2] == "pytest")
        ), command
        if words[2] != "corpora":
            return
        name, rest = "corpora", words[3:]
    if name == "train":
        return check_training(parsed(train, rest))
    if name == "evaluate":
        args = parsed(evaluate, rest)
        quickstart = ROOT / "configs/quickstart.yaml"
        load_config(RunConfig, quickstart, args.overrides)
        return None
    entry = MODULES[name]
    parsed(importlib.import_module(entry.module), [*entry.prefix, *rest])
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist_as_printed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        try:
            check(command)
        except (SystemExit, Exception) as error:
            raise AssertionError(f"{page.name}: {command}\n{error!r}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures, with anchors."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
