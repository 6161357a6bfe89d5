"""The commands printed in README, docs, presets and help run, shortened; those that need a download parse."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

import corpora
from amortized.cli import preset_paths
from amortized.commands.main import COMMANDS
from amortized.commands.view import pages_of
from amortized.splats import from_points, scene_of, write_splat_ply
from amortized.starts import fitting
from corpora.published import PUBLISHED, Published
from tests.commands.runs import small
from tests.rooms import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHED = re.compile(r"(?:torchrun|torch\.distributed\.run) .*?((?:-m |\S+\.py ).*)")
COMMAND = re.compile(r"(?:python|torchrun|amortized|make) \S")

# Appended to the printed command, so that it takes a second.
SHORT = {
    "train": [
        "device=cpu",
        "trainer.steps=2",
        "trainer.prompts_per_process=1",  # the most that a generator of one object takes
        "trainer.render_size=16",
        "prior.dtype=float32",
        "monitoring.preview_prompts=1",
        "generator.grid.log2_table_size=12",
    ],
    "evaluate": [
        "evaluation.views=2",
        "evaluation.turntable_frames=2",
        "evaluation.grid=16",
        "evaluation.objects=1",
    ],
    "generate": [
        *("--views", "2", "--size", "16", "--frames", "2", "--device", "cpu"),
        *("--resolution", "32", "--faces", "500", "--texture", "64", "--workers", "1"),
    ],
    "playground": ["steps=6", "images=1"],
}
# Parsed, not run: they need a download, start processes, or are long and covered by other tests.
ONLY_PARSED = ("convert", "bench", "submit")
# Presets of published runs over a corpus, whose generators have their full size.
OF_A_CORPUS = re.compile("configs/published/asd-(sd-hyper|sd-3dconv|mv-triplane)")


def shell_lines(text: str) -> Iterator[str]:
    """The commands of a page's fenced blocks, continuation lines joined, comments dropped."""
    for language, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text):
        if language in ("", "sh", "bash"):
            yield from commands_in(block)


def commands_in(block: str) -> Iterator[str]:
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        line = re.split(r" {2,}| # ", line.strip())[0]
        if COMMAND.match(line):
            yield line


def inline_commands(text: str) -> Iterator[str]:
    """Complete commands in running text."""
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text)):
        complete = "..." not in span and (LAUNCHED.search(span) or not span.startswith("torchrun"))
        if COMMAND.match(span) and complete:
            yield span


def header(preset: Path) -> str:
    """The comment at the top of a preset, without its comment signs."""
    lines = preset.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line[1:].strip() for line in comment)


def split_command(command: str) -> tuple[str, list[str]]:
    """The module or amortized subcommand that a command runs, and its arguments. Launchers are dropped."""
    launched = LAUNCHED.search(command)
    words = shlex.split(f"python {launched[1]}" if launched else command)
    if words[0] == "amortized":
        return words[1], words[2:]
    if words[1] == "-m":
        module = words[2]
        for known in COMMANDS:
            if known.module.removesuffix(".__main__") == module and not known.prefix:
                return known.name, words[3:]
        return module, words[3:]
    return words[1].removesuffix(".py"), words[2:]


@pytest.fixture
def workspace(tmp_path, trained, exported, prior, run, monkeypatch) -> Path:
    """A folder with everything that the pages mention, small: runs, models, corpora."""
    for name in ("FOLDER", "path/to/stable-diffusion-2-1-base"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(prior)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/mvdream").symlink_to(ROOT / "checkpoints/shapes-multi-view")
    shutil.copytree(trained, tmp_path / "outputs/quickstart")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/quickstart").symlink_to(exported)
    for name in ("prompts.txt", "sentences.txt"):
        (tmp_path / name).write_text("a red cube\na blue sphere\n")
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    write_splat_ply(tmp_path / "points.ply", scene_of(from_points(points), 1.0))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red cube"}\n')
    for name in ("mg15", "df415", "dl17k", "cp100k"):
        public = tmp_path / PUBLISHED[name].file
        public.write_text(json.dumps({"train": ["a red cube"], "val": ["a cone"], "test": ["a red cube"]}))
        shutil.copy(public, tmp_path / "path/to")
        monkeypatch.setitem(PUBLISHED, name, Published(file=public.name, entries=None))  # type: ignore[arg-type]
    monkeypatch.setattr(fitting, "STEPS", 5)
    monkeypatch.setitem(corpora.CORPORA, "shapes100k", corpora.CORPORA["shapes-comp"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(command: str, run) -> None:
    """Run a command, shortened."""
    if command.startswith("make "):
        lines = made(command)
        if lines:
            shutil.rmtree("outputs/quickstart", ignore_errors=True)
        for line in lines:
            execute(line, run)
        return
    name, arguments = split_command(command)
    if name in ONLY_PARSED or name not in {known.name for known in COMMANDS}:
        return parse(command)
    if name == "view":  # serves until Ctrl-C
        assert any(page.is_file() for page in pages_of(Path(arguments[0]))), command
        return parse(command)
    if name == "serve":  # the same; test_serve.py replays the requests of its page
        return parse(command)
    if "--protocol" in arguments:  # hundreds of large images, and other judges; test_protocols.py
        return parse(command)
    if name == "train" and OF_A_CORPUS.search(command):  # minutes; test_published_corpora.py has dry runs
        return parse(command)
    if "generator.name=film" in arguments:  # test_extending.py builds that generator and trains it
        return None
    short = list(SHORT.get(name, []))
    if name == "train" and re.search("3dconv|triplane|splats", command):
        short = [word for word in short if "grid" not in word]
    if "start=outputs/quickstart" in arguments:  # which the tests train with another prior
        short.append("text.encoder=FOLDER")
    if name == "evaluate":
        arguments = [re.sub("clip=ViT.*", f"clip={ROOT / 'checkpoints/shapes-clip'}", a) for a in arguments]
        if not any(word.startswith("--") for word in arguments):  # then it is the evaluation of the run
            short += ["--output", f"{arguments[0]}/evaluation"]
        short += [] if {"--prompt", "--prompts"} & {*arguments} else ["--limit", "2"]
    done = run("amortized", name, *arguments, *short)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return None


def made(command: str) -> list[str]:
    """The commands of this project that a make target runs."""
    # An existing .installed keeps make from printing the installation.
    words = [
        "make",
        "-n",
        "-C",
        str(ROOT),
        f"VENV={Path(sys.prefix)}",
        "-o",
        f"{Path(sys.prefix)}/.installed",
    ]
    shown = subprocess.run([*words, *shlex.split(command)[1:]], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, f"{command}\n{shown.stderr}"
    lines = re.sub(r"\\\n\s*", "", shown.stdout)
    lines = re.sub(r"\$\(\( (\d+) / (\d+) \)\)", lambda match: str(int(match[1]) // int(match[2])), lines)
    return [line for line in lines.splitlines() if re.search(r"(train|evaluate)\.py", line)]


class Parsed(SystemExit):  # which the boundary of the commands lets through
    """Raised in place of a command's work."""


def parse(command: str) -> None:
    """Check that a module accepts the arguments, without running it."""
    name, arguments = split_command(command)
    if name in ("pytest", "tests.draw_rooms"):  # no arguments of ours
        return
    known = {command.name: command for command in COMMANDS}
    argv = [name, *arguments]
    with pytest.MonkeyPatch.context() as patch:
        for method in ("parse_args", "parse_intermixed_args"):
            original = getattr(argparse.ArgumentParser, method)

            def stop(self, *args, original=original, **options):
                original(self, *args, **options)
                raise Parsed

            patch.setattr(argparse.ArgumentParser, method, stop)
        patch.setattr(sys, "argv", argv)
        with pytest.raises(Parsed):
            if name in known:
                importlib.import_module("amortized.commands.main").main(argv)
            else:
                runpy.run_module(name, run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_as_printed(page, workspace, run):
    commands = list(shell_lines(page.read_text(encoding="utf-8")))
    if any("outputs/shapes-comp" in command for command in commands):
        prior, folder = str(workspace / "FOLDER"), workspace / "outputs/shapes-comp"
        assert run(*small(prior, folder, "corpus=shapes-comp", "held_out=0.2")).returncode == 0
    for command in commands:
        execute(command, run)


def test_all_commands_of_the_pages_are_read():
    commands = [command for page in PAGES for command in shell_lines(page.read_text(encoding="utf-8"))]
    assert len(commands) > 30 and "amortized export outputs/mine exported/mine" in commands


def cases_of(presets: Iterable[Path]) -> Iterator[object]:
    """Presets as cases of a test: those of published runs are many, so every change only loads them."""
    for path in presets:
        marks = [pytest.mark.slow] if "published" in path.parts else []
        name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        yield pytest.param(path, marks=marks, id=name)


@pytest.mark.parametrize("preset", cases_of(preset_paths()))
def test_the_commands_of_a_preset_run_as_printed(preset, workspace, run):
    for command in commands_in(header(preset)):
        execute(command, run)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_examples_of_a_help_text_parse(command):
    examples = list(commands_in(importlib.import_module(command.module).__doc__ or ""))
    assert examples
    for example in examples:
        parse(example)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_running_text_parse(page):
    for command in inline_commands(page.read_text(encoding="utf-8")):
        if command.startswith("make "):
            made(command)
        elif len(words := command.split()) > 2 and "--help" not in words:  # not just the name of a command
            parse(command)


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
